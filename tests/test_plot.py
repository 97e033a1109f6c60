"""The picture of a run's curves, and what is said where there is nothing to draw."""

import json

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from inception_jax import plot


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    rows = [
        {"kind": "train", "step": s, "epoch": s / 10, "top1": s / 100, "main_loss": 3 - s / 50}
        for s in range(1, 91)
    ]
    rows += [
        {"kind": "eval", "step": s, "epoch": s / 10, "top1": s / 100, "loss": 2 - s / 50}
        for s in (30, 60, 90)
    ]
    write(folder, rows)
    return folder


def write(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_picture_holds_the_runs_curves_and_its_last_accuracy(workdir, monkeypatch, capfd):
    out = workdir / "curve.png"
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **k: (figures.append(self), save(self, *args, **k))
    )
    assert plot.main(["plot", str(workdir), f"--out={out}"]) == 0
    assert str(out) in capfd.readouterr().out
    picture = matplotlib.image.imread(out)
    assert picture.shape[0] > 400 and len(np.unique(picture.reshape(-1, 4), axis=0)) > 20

    accuracy, loss = figures[0].axes
    for axes, values in ((accuracy, [0.3, 0.6, 0.9]), (loss, [1.4, 0.8, 0.2])):
        trained, evaluated = (line.get_xydata() for line in axes.lines)
        np.testing.assert_allclose(evaluated, [*zip([3, 6, 9], values, strict=True)])
        assert len(trained) == 30  # means of three
    np.testing.assert_allclose(accuracy.lines[0].get_xydata()[0], [0.2, 0.02])
    np.testing.assert_allclose(loss.lines[0].get_xydata()[0], [0.2, 2.96])
    assert [text.get_text() for text in accuracy.texts] == ["90.00%"]


def test_runs_stand_side_by_side_under_their_names(workdir, tmp_path, monkeypatch):
    second = tmp_path / "second"
    second.mkdir()
    write(second, [{"kind": "eval", "step": 1, "epoch": 1.0, "top1": 0.5, "loss": 1.0}])
    labels = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *_, **__: labels.extend(
            text.get_text() for text in self.axes[1].get_legend().get_texts()
        ),
    )
    assert plot.main(["plot", str(workdir), str(second)]) == 0
    kinds = ("training batches", "evaluation")
    assert labels == [f"{run}, {kind}" for run in ("first", "second") for kind in kinds]


def test_runs_whose_folders_have_one_name_are_told_apart_by_their_paths(
    workdir, tmp_path, monkeypatch
):
    other = tmp_path / "second" / "first"
    other.mkdir(parents=True)
    write(other, [{"kind": "eval", "step": 1, "epoch": 1.0, "top1": 0.5, "loss": 1.0}])
    drawn = []
    monkeypatch.setattr(plot, "plot", lambda runs, out: drawn.extend(runs))
    assert plot.main(["plot", str(workdir), str(other)]) == 0
    assert drawn == [str(workdir), str(other)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory"),
        ("", "holds no evaluation yet"),
        ('{"kind": "train", "epoch": 1}\n', "holds no evaluation yet"),
        ('{"kind": "ev', "is damaged"),
        ("[1]", "is damaged"),
        ("{}", "is damaged"),
    ],
)
def test_a_run_without_anything_to_draw_is_one_line(content, told, tmp_path, capfd):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert plot.main(["plot", str(tmp_path)]) == 1
    assert_one_line(capfd, told, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a workdir"),
        (["WORKDIR", "--out=absent/x.png"], "could not write absent/x.png: No such file"),
        (["WORKDIR", "--out=curve.txt"], "Format 'txt' is not supported"),
        (["WORKDIR", "--output=x"], "Unknown command line flag 'output'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, told, workdir, capfd):
    arguments = [str(workdir) if a == "WORKDIR" else a for a in arguments]
    assert plot.main(["plot", *arguments]) == 1
    assert_one_line(capfd, told)


def assert_one_line(capfd, *parts):
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts)
