"""The picture of what the network will see: what is in it, and what is said where it cannot be."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from inception_jax import figures
from inception_jax.data import show

ROWS, COLUMNS = 3, 4
ARGUMENTS = ("show", "--config=configs/digits.py", f"--rows={ROWS}", f"--columns={COLUMNS}")


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Returns draw(*overrides) -> titles, labels and the images of the picture, and its file."""
    save, seen = figures.save, []

    def watched(figure, out):
        seen.extend(figure.axes)
        save(figure, out)

    monkeypatch.setattr(figures, "save", watched)

    def draw(*overrides):
        seen.clear()
        out = tmp_path / "shown.png"
        assert show.main([*ARGUMENTS, f"--out={out}", *overrides]) == 0
        grid = np.array(seen, object).reshape(ROWS, -1)
        titles = [axis.get_title() for axis in grid[0]]
        labels = [axis.get_ylabel() for axis in grid[:, 0]]
        images = [[np.asarray(axis.images[0].get_array()) for axis in row] for row in grid]
        return titles, labels, images, out

    return draw


def test_a_row_shows_an_example_as_it_is_as_evaluated_and_in_its_first_epochs(shown, capfd):
    titles, labels, images, out = shown("--config.data.crop_area=(0.2,1.0)")
    assert titles == ["original", "evaluation", *(f"epoch {n + 1}" for n in range(COLUMNS))]
    digits = load_digits()
    for label, (original, evaluated, *patches) in zip(labels, images, strict=True):
        assert original.shape == (8, 8, 3)
        assert len({evaluated.shape, (16, 16, 3), *(patch.shape for patch in patches)}) == 1
        grey = np.round(digits.images * 255 / 16)
        [number] = np.flatnonzero((np.abs(grey - original[..., 0]) <= 1).all((1, 2)))
        assert label == str(digits.target[number])
        assert len({patch.tobytes() for patch in patches}) > 1
    assert len(set(map(str, images))) == ROWS
    assert capfd.readouterr().out == f"drawn in {out}\n"

    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.size == (round(150 * 1.5 * (2 + COLUMNS)), round(150 * 1.6 * ROWS))
        pixels = np.asarray(picture.convert("L"))
    for row in np.array_split(pixels, ROWS):
        for axis in np.array_split(row, 2 + COLUMNS, axis=1):
            assert np.ptp(axis) > 150  # a digit on black, on white paper


def test_with_mixup_each_patch_is_its_own_and_a_share_of_that_of_the_row_above(shown):
    _, _, plain, _ = shown()
    _, _, mixed, _ = shown("--config.data.mixup=1.0")
    shares = []
    for row in range(ROWS):
        for own, other, found in zip(
            plain[row][2:], plain[row - 1][2:], mixed[row][2:], strict=True
        ):
            difference = own.astype(float) - other
            share = ((found - other.astype(float)) * difference).sum() / (difference**2).sum()
            assert np.abs(other + share * difference - found).max() <= 1.5  # each was rounded
            shares.append(share)
        assert (plain[row][0] == mixed[row][0]).all()
        assert (plain[row][1] == mixed[row][1]).all()
    assert all(-0.01 <= share <= 1.01 for share in shares)
    assert sum(0.1 < share < 0.9 for share in shares) >= len(shares) / 2


def test_what_stands_in_for_an_image_that_cannot_be_read_is_shown(shown, tmp_path):
    for label, split in enumerate(("train", "val")):
        for index in range(2):
            path = tmp_path / "images" / split / str(index) / "a.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (20, 20), (100 * label + 50 * index, 9, 9)).save(path)
    for index in range(2):
        (tmp_path / "images" / "train" / str(index) / "b.png").write_text("no image")
    options = ("name=image_folder", f"dir={tmp_path}/images", "eval_split=val", "unreadable=skip")
    _, labels, images, _ = shown(*(f"--config.data.{option}" for option in options))
    for label, (original, evaluated, *patches) in zip(labels, images, strict=True):
        assert original[0, 0].tolist() == [50 * int(label), 9, 9]
        assert all((image == original[0, 0]).all() for image in (evaluated, *patches))


def test_more_rows_than_there_are_examples_are_not_asked_for(tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(show, "draw", lambda config, data, count, *rest: counts.append(count))
    arguments = ["show", "--config=configs/digits.py", f"--out={tmp_path}/shown.png"]
    assert show.main([*arguments, "--rows=7"]) == 0
    monkeypatch.setattr("inception_jax.data.datasets.load", few)
    assert show.main([*arguments, "--rows=7"]) == 0
    assert counts == [7, 2]


def few(config):
    return type("Data", (), {"train": "ab"})


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--rows=0", "--rows is 0: it must be from 1 to 100"),
        ("--rows=101", "--rows is 101: it must be from 1 to 100"),
        ("--columns=-1", "--columns is -1: it must be from 1 to 100"),
        ("--columns=many", "columns"),
        ("--out={folder}/nosuch/shown.png", "could not write {folder}/nosuch/shown.png: No such"),
        ("--out={folder}", "could not write {folder}: Is a directory"),
        (
            "--out={folder}/shown.nosuch",
            "could not write {folder}/shown.nosuch: Format 'nosuch' is",
        ),
        ("--config.data.name=nosuch", "nosuch"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(flag, told, tmp_path, capfd):
    folder = tmp_path / "a.png"
    folder.mkdir()
    assert show.main([*ARGUMENTS, flag.format(folder=folder)]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert told.format(folder=folder) in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.rglob("*")) == [folder]
