"""What the command prints and draws, and what it says where it cannot."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from PIL import Image

from inception_jax import process
from inception_jax.cost import __main__ as cost
from inception_jax.cost.draw import LINEUP

IMAGENET = "--config=configs/imagenet.py"
# By recipe: parameters as published, reimplemented or by hand, and the paper's top-5 error.
OVERFEAT_7 = (
    *(7 * 7 * 3 * 96 + 96, 5 * 5 * 96 * 256 + 256),  # conv1, conv2
    *(9 * 256 * 512 + 512, 4 * (9 * 512 * 512 + 512)),  # conv3, conv4 to conv7
    *(512 * 50 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000 + 1000),  # 50 bins
)
LINE_UP = {
    "alexnet": (60_965_224, 18.2),
    "zfnet": (62_357_608, 16.4),
    "vgg16": (138_357_544, 8.1),
    "sppnet_overfeat7": (sum(OVERFEAT_7), 9.14),
    "googlenet": (6_998_552, 7.89),
}


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """Returns run(*arguments) -> (exit code, stdout, stderr) of the command, in this process."""
    monkeypatch.setattr(process, "quiet", lambda: None)  # it is for whole processes
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        absent = f"--config.data.dir={tmp_path}/absent"
        code = cost.main(["cost", IMAGENET, absent, *arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def printed(run):
    """Returns printed(*arguments) -> what it prints, and nothing but that."""

    def printed(*arguments):
        code, out, error = run(*arguments)
        assert (code, error) == (0, "")
        return out

    return printed


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved while the test runs."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **k: (saved.append(self), save(self, *args, **k))
    )
    return saved


def start(*arguments, home):
    """Runs the command as a user does who has no data set."""
    return subprocess.run(
        [sys.executable, "-m", "inception_jax.cost", *arguments],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cells(text, name):
    """The columns of the line that begins with a name."""
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
    return [cell.strip() for cell in line.split("  ") if cell]


def test_the_table_is_all_that_it_prints(tmp_path):
    done = start(IMAGENET, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "imagenet: googlenet, an image of 224x224 pixels, 1000 classes"
    # 3a's 3x3 branch, with the lecture's millions, and the heads of the training
    layers, _, table_1 = done.stdout.partition("Beside Table 1")
    reduced = ["convolution", "1x1/1", "28x28x96", "4", f"{192 * 96 + 96:,}", "14.5", "14.5"]
    assert cells(layers, "inception_3a/3x3_reduce")[1:] == reduced
    assert cells(layers, "inception_3a/3x3")[4:7] == ["5", f"{9 * 96 * 128 + 128:,}", "86.7"]
    assert cells(layers, "loss1/classifier")[0] == "loss1/classifier *"
    assert "depth                22 layers" in layers
    assert "parameters           6,998,552\n" in layers
    assert "in training        13,378,280 " in layers
    assert cells(table_1, "3b") == ["3b", "28x28x480", "2", "379.0K", "380K", "304.3M", "304M"]
    assert cells(table_1, "sum") == ["sum", "1,583M", "1,502M"]
    assert "3a: the paper cuts the weights off: 159.5K" in table_1


def test_a_picture_is_told_of_beside_the_output(tmp_path):
    out = tmp_path / "cost.png"
    done = start(f"{IMAGENET}:alexnet", "--format=csv", f"--plot={out}", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"drawn in {out}\n")
    assert {row["network"] for row in csv.DictReader(io.StringIO(done.stdout))} == {
        "imagenet-alexnet"
    }
    assert_drawn(out)


def test_float64_is_counted_as_that_without_warnings(tmp_path):
    arguments = ("--config=configs/digits.py:alexnet", "--config.model.dtype=float64")
    done = start(*arguments, "--format=json", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    totals = json.loads(done.stdout)["totals"]
    # what is left is the images' cast from float32
    side = json.loads(done.stdout)["image_size"]
    assert totals["unexplained_flops"] == pytest.approx(3 * side * side, abs=100)


def test_json_holds_every_layer_and_their_sums(printed):
    found = json.loads(printed("--format=json"))
    totals, layers = found["totals"], found["layers"]
    assert (found["model"], found["image_size"], found["num_classes"]) == ("googlenet", 224, 1000)
    evaluated = [layer for layer in layers if not layer["training_only"]]
    assert {layer["name"].partition("/")[0] for layer in layers if layer["training_only"]} == {
        "loss1",
        "loss2",
    }
    for rows, prefix in ((evaluated, ""), (layers, "training_")):
        for field in ("parameters", "multiply_adds"):
            assert totals[prefix + field] == sum(row[field] for row in rows)
    valid = totals["valid_multiply_adds"]
    assert valid == sum(row["valid_multiply_adds"] for row in evaluated)
    assert totals["depth"] == max(row["depth"] for row in evaluated) == 22
    others = sum(totals["other_flops"].values())
    assert others == sum(row["other_flops"] for row in evaluated)
    assert totals["xla_flops"] == 2 * valid + others + totals["unexplained_flops"]
    assert totals["xla_ratio"] == pytest.approx(totals["xla_flops"] / 3.009e9, rel=1e-3)
    assert totals["parameters"] == 6_998_552
    assert sum(row["paper_mega_multiply_adds"] for row in found["table_1"]) == 1502


def test_json_of_several_is_a_list_in_their_order(printed):
    found = json.loads(printed("--compare=vgg16 alexnet", "--format=json"))
    assert [(each["name"], each["totals"]["parameters"]) for each in found] == [
        ("vgg16", LINE_UP["vgg16"][0]),
        ("alexnet", LINE_UP["alexnet"][0]),
    ]
    assert [each["table_1"] for each in found] == [[], []]


def test_csv_is_a_line_a_layer_with_its_network(printed):
    rows = list(csv.DictReader(io.StringIO(printed("--compare=vgg11 zfnet", "--format=csv"))))
    for network, parameters in (("vgg11", 132_863_336), ("zfnet", 62_357_608)):
        mine = [row for row in rows if row["network"] == network]
        assert sum(int(row["parameters"]) for row in mine) == parameters
    (conv1,) = (row for row in rows if (row["network"], row["name"]) == ("zfnet", "conv1"))
    assert (conv1["window"], conv1["output"]) == ("7x7/2", "110x110x96")
    assert int(conv1["multiply_adds"]) == 110 * 110 * 96 * 147
    assert (conv1["kind"], conv1["depth"], conv1["training_only"]) == ("convolution", "1", "False")


def test_recipes_side_by_side(printed):
    out = printed("--compare=" + " ".join(LINE_UP))
    assert len(out.splitlines()) == 2 + len(LINE_UP)  # no branches: not all are GoogLeNets
    for recipe, (parameters, _) in LINE_UP.items():
        assert cells(out, recipe)[3] == f"{parameters:,}"
    vgg16 = ["vgg16", "224x224", "16", "138,357,544", "15,470.3"]
    assert cells(out, "vgg16")[:5] == vgg16
    assert cells(out, "vgg16")[-1] == f"{15470.3 / 724.4:.2f} x"  # AlexNet's millions


def test_fields_side_by_side_branch_by_branch(printed):
    """The lecture's 3x3 branch of 3a."""
    out = printed("--compare=model.module=reduced config.model.module=naive")
    assert cells(out, "model.module=reduced")[2] == "22"
    assert cells(out, "config.model.module=naive")[2] == "13"
    branch = ["inception_3a/3x3", "14.5 + 86.7", "173.4", "42% fewer"]
    assert cells(out, "inception_3a/3x3") == branch
    assert cells(out, "inception_3a/1x1") == ["inception_3a/1x1", "9.6", "9.6"]
    pool = cells(out, "inception_3a/pool_proj")
    assert pool == ["inception_3a/pool_proj", "4.8", "-"]


def test_three_fields_side_by_side_have_no_column_of_savings(printed):
    shallow = ("--config.model.modules=3a", "--config.model.auxiliary_heads=False")
    out = printed("--compare=model.width=1 model.width=2 model.width=3", *shallow)
    # of the stem, 118.0 M, only the outputs grow: the input has three colours
    assert cells(out, "conv1/7x7_s2") == ["conv1/7x7_s2", "118.0", "236.0", "354.0"]
    assert "in the first" not in out


def first_layers(out):
    return {
        row["network"]: row["output"]
        for row in csv.DictReader(io.StringIO(out))
        if row["name"] in ("conv1", "conv1_1")
    }


def test_other_overrides_apply_to_all_that_are_compared(printed):
    out = printed("--compare=alexnet vgg11", "--config.model.width=0.5", "--format=csv")
    assert first_layers(out) == {"alexnet": "55x55x48", "vgg11": "224x224x32"}


def test_fields_are_of_the_recipe_that_config_names_and_come_last(printed):
    arguments = ("--config.model.width=0.25", "--format=csv")
    compare = "--compare=model.width=0.5 model.batch_norm=True"
    out = printed("--config=configs/imagenet.py:vgg11", compare, *arguments)
    assert first_layers(out) == {
        "model.width=0.5": "224x224x32",
        "model.batch_norm=True": "224x224x16",
    }


def test_values_may_stand_apart_from_their_flags(printed):
    out = printed("--compare", "alexnet zfnet", "--format", "csv")
    assert first_layers(out) == {"alexnet": "55x55x96", "zfnet": "110x110x96"}


def test_values_with_spaces_are_quoted(printed):
    compare = "--compare='model.modules=3a, 4a' model.modules=4a"
    rows = csv.DictReader(io.StringIO(printed(compare, "--format=csv")))
    found = {(row["network"], row["name"].partition("/")[0]) for row in rows}
    assert ("model.modules=3a, 4a", "inception_3a") in found
    assert ("model.modules=4a", "inception_3a") not in found


def assert_drawn(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def drawn(run, *arguments, out):
    assert run(*arguments, f"--plot={out}")[::2] == (0, f"drawn in {out}\n")


def bars(axes):
    return [bar.get_width() for container in axes.containers for bar in container]


def test_one_network_is_drawn_by_its_blocks_with_the_papers_marks(run, figures, tmp_path):
    drawn(run, out=tmp_path / "x.png")
    assert_drawn(tmp_path / "x.png")
    multiply_adds, parameters = figures[0].axes
    blocks = [label.get_text() for label in multiply_adds.get_yticklabels()]
    assert blocks[:3] == ["conv1", "conv2", "inception_3a"]
    assert (blocks[-1], len(blocks)) == ("loss3", 12)
    assert bars(multiply_adds)[:3] == pytest.approx([118.0, 359.7, 128.0], abs=0.05)
    assert sum(bars(parameters)) == pytest.approx(6.998552)
    for axes, paper in ((multiply_adds, 1502), (parameters, 6.957)):
        (marks,) = axes.lines
        assert marks.get_xdata().sum() == pytest.approx(paper, rel=1e-3)
        assert list(marks.get_ydata()) == list(range(12))
    (name, total) = [text.get_text() for text in multiply_adds.get_legend().get_texts()][::-1]
    assert {name, total} == {"imagenet: 1,582.7 M", "the paper's Table 1"}


def test_googlenets_are_drawn_block_beside_block(run, figures, tmp_path):
    out = tmp_path / "x.svg"
    drawn(run, "--compare=model.module=reduced model.module=naive", out=out)
    assert "<svg" in out.read_text()
    multiply_adds, _ = figures[0].axes
    assert len(bars(multiply_adds)) == 2 * 12
    assert not multiply_adds.lines  # no marks of the paper's where there are several
    names = [text.get_text().partition(":")[0] for text in multiply_adds.get_legend().get_texts()]
    assert names == ["model.module=reduced", "model.module=naive"]


def test_different_networks_are_drawn_by_their_totals(run, figures, tmp_path):
    drawn(run, "--compare=vgg11 alexnet", out=tmp_path / "x.png")
    assert_drawn(tmp_path / "x.png")
    multiply_adds, parameters = figures[0].axes
    assert bars(parameters) == pytest.approx([132.863336, 60.965224])
    assert bars(multiply_adds) == pytest.approx([7609, 724.4], rel=1e-4)
    assert [label.get_text() for label in multiply_adds.get_yticklabels()] == ["vgg11", "alexnet"]


def test_the_line_up_is_drawn_with_its_published_errors(run, figures, tmp_path):
    drawn(run, "--compare=" + " ".join(LINE_UP), out=tmp_path / "x.png")
    assert_drawn(tmp_path / "x.png")
    errors = {recipe: error for recipe, (_, error) in LINEUP.items()}
    assert {recipe: error for recipe, (_, error) in LINE_UP.items()} == errors
    (axes,) = figures[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert "AlexNet: 18.2 %\n61 M parameters" in texts
    assert "GoogLeNet: 7.89 %\n7 M parameters" in texts
    places = [tuple(points.get_offsets()[0]) for points in axes.collections[1::2]]
    errors = [error for _, error in LINE_UP.values()]
    assert [error for _, error in places] == errors
    assert [places[i][0] for i in (0, 2, 4)] == pytest.approx([0.7244, 15.47, 1.583], rel=1e-3)
    areas = [points.get_sizes()[0] for points in axes.collections[::2]]
    assert areas[2] / areas[0] == pytest.approx(138_357_544 / 60_965_224)


def test_modules_without_weights_can_be_drawn(run, figures, tmp_path):
    fields = ("--config.model.branches=pool", "--config.model.projection=False")
    drawn(run, *fields, out=tmp_path / "x.png")
    assert len(bars(figures[0].axes[0])) == 3  # conv1, conv2, loss3
    assert figures[0].axes[0].lines[0].get_xdata().tolist() == [34, 360, 1]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--format=xml"], "--format is 'xml'; known: table, json, csv"),
        (["--form=csv"], "unknown flag --form: did you mean --format?"),
        (["--compare=alexnet vgg17"], "configs/imagenet.py has no variant 'vgg17': it has "),
        (["--compare=alexnet"], "--compare=alexnet needs two or more"),
        (["--compare=zfnet zfnet"], "--compare=zfnet zfnet names one of them twice"),
        (["--compare=alexnet 'vgg16"], "--compare=alexnet 'vgg16: No closing quotation"),
        (["--compare=model.modul=naive vgg16"], "unknown config field config.model.modul: did"),
        (["--compare=model.width=x vgg16"], "config.model.width is 'x': it must be of type float"),
        (["--compare=model.width=0 vgg16"], "config.model.width is 0.0: it must be above 0"),
        (
            ["--compare=googlenet vgg16", "--config.model.module=naive"],
            "config.model.module is 'naive', but vgg16 has no such field",
        ),
        (["--config.model.branches="], "config.model.branches is empty: name at least one of"),
        (["--config.model.module=naiv"], "config.model.module is 'naiv': did you mean naive?"),
        (["--config.model.width=0.01"], "config.model.width=0.01 leaves inception_3a/5x5_reduce"),
        (
            ["--config=configs/imagenet.py:sppnet", "--config.model.pyramid=(1,20)"],
            "config.model.pyramid=(1, 20) has a level of 20x20 bins, more than the 13x13 pixels",
        ),
        (
            ["--compare=data.image_size=30 data.image_size=224"],
            "images of 30 pixels are too small for GoogLeNet: set config.data.image_size to 31",
        ),
        (["--config.data.name=mnist"], "data set mnist is not in "),
        (["alexnet"], "unexpected argument 'alexnet'"),
    ],
)
def test_what_cannot_be_counted_is_one_line_and_prints_nothing(arguments, told, run):
    code, out, error = run(*arguments)
    assert (code, out) == (1, "")
    assert_one_line(error, told)


@pytest.mark.parametrize(
    "name, told",
    [("x.txt", "Format 'txt' is not supported"), ("no/x.png", "No such file or directory")],
)
def test_a_picture_that_cannot_be_written_is_one_line(name, told, run, tmp_path):
    code, _, error = run("--config=configs/imagenet.py:alexnet", f"--plot={tmp_path / name}")
    assert code == 1
    assert_one_line(error, f"could not write {tmp_path / name}: {told}")
    assert not (tmp_path / name).exists()


def test_a_mistake_is_one_line_of_a_process(tmp_path):
    for arguments, told in (
        ([], "no config given: add --config=configs/digits.py"),
        ([IMAGENET, "--config.data.image_size=20"], "images of 20 pixels are too small"),
    ):
        done = start(*arguments, home=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert_one_line(done.stderr, told)


def assert_one_line(error, told):
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
