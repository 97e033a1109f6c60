"""The rows beside the paper's Table 1: its numbers, ours, and each reason for a difference."""

import re

import pytest

from configs import imagenet
from inception_jax.cost import render, table1
from inception_jax.cost.report import Report

# The lecture's copy of the table: type, patch/stride, output, depth, #1x1, #3x3 reduce, #3x3,
# #5x5 reduce, #5x5, pool proj, params, ops.
LECTURE = """
convolution     7x7/2  112x112x64  1                              2.7K    34M
max pool        3x3/2  56x56x64    0
convolution     3x3/1  56x56x192   2       64   192               112K   360M
max pool        3x3/2  28x28x192   0
inception (3a)         28x28x256   2   64  96   128  16  32   32  159K   128M
inception (3b)         28x28x480   2  128  128  192  32  96   64  380K   304M
max pool        3x3/2  14x14x480   0
inception (4a)         14x14x512   2  192  96   208  16  48   64  364K    73M
inception (4b)         14x14x512   2  160  112  224  24  64   64  437K    88M
inception (4c)         14x14x512   2  128  128  256  24  64   64  463K   100M
inception (4d)         14x14x528   2  112  144  288  32  64   64  580K   119M
inception (4e)         14x14x832   2  256  160  320  32  128  128 840K   170M
max pool        3x3/2  7x7x832     0
inception (5a)         7x7x832     2  256  160  320  32  128  128 1072K   54M
inception (5b)         7x7x1024    2  384  192  384  48  128  128 1388K   71M
avg pool        7x7/1  1x1x1024    0
dropout (40%)          1x1x1024    0
linear                 1x1x1000    1                              1000K    1M
softmax                1x1x1000    0
"""
LINE = r"(\w.*?)  .*?(\d+x\d+x\d+) +(\d) +([\d ]*?) *([\d.]+)K +(\d+)M"
CONVOLUTIONS = iter(("conv1", "conv2"))
# Row: output, depth, widths, params in thousands, ops in millions.
PAPER = {
    (re.findall(r"\((..)\)", kind) or [next(CONVOLUTIONS) if kind == "convolution" else kind])[0]: (
        tuple(map(int, output.split("x"))),
        int(depth),
        tuple(map(int, widths.split())),
        params,
        ops,
    )
    for kind, output, depth, widths, params, ops in re.findall(LINE, LECTURE)
}
MODULES = [row for row in PAPER if len(row) == 2]
INPUT_CHANNELS = dict(zip(MODULES, (192, *(PAPER[row][0][2] for row in MODULES[:-1])), strict=True))
# Weights / 1,024 and multiply-adds / 10^6 that follow from the table's widths.
RECOMPUTED = {
    "conv1": (9.2, 118.0),
    "conv2": (112.0, 359.7),
    "3a": (159.5, 128.0),
    "3b": (379.0, 304.3),
    "4a": (366.8, 73.6),
    "4b": (438.0, 87.9),
    "4c": (497.5, 99.9),
    "4d": (590.5, 118.5),
    "4e": (847.0, 170.0),
    "5a": (1018.0, 51.1),
    "5b": (1409.0, 70.7),
    "linear": (1000.0, 1.0),
}
OWN = "Not the paper's network, size and classes, so differences are its own."


def module_weights(row, **changed):
    """Weights of an Inception module by the table's widths."""
    names = ("n1", "reduce3", "n3", "reduce5", "n5", "pool")
    n = dict(zip(names, PAPER[row][2], strict=True)) | changed
    return (
        INPUT_CHANNELS[row] * (n["n1"] + n["reduce3"] + n["reduce5"] + n["pool"])
        + 9 * n["reduce3"] * n["n3"]
        + 25 * n["reduce5"] * n["n5"]
    )


def report(num_classes=1000, image_size=224, **fields):
    config = imagenet.get_config()
    config.data.image_size = image_size
    for name, value in fields.items():
        config.model[name] = value
    return Report("imagenet", config, num_classes)


@pytest.fixture(scope="module")
def published():
    return report()


@pytest.fixture(scope="module")
def rows(published):
    return {row.row: row for row in published.table_1}


def test_the_papers_columns_are_the_papers(rows):
    assert len(PAPER) == 12
    assert list(rows) == list(PAPER)
    for name, (output, depth, _, params, ops) in PAPER.items():
        row = rows[name]
        assert f"{row.paper_kilo_weights:g}" == params
        assert f"{row.paper_mega_multiply_adds:g}" == ops
        assert row.depth == depth
        assert row.output == (output if name != "linear" else output[2:])


def test_our_columns_follow_from_the_papers_widths(rows):
    for name, (kilo_weights, mega) in RECOMPUTED.items():
        assert f"{rows[name].kilo_weights:.1f}" == f"{kilo_weights:.1f}"
        assert f"{rows[name].mega_multiply_adds:.1f}" == f"{mega:.1f}"
    for name in MODULES:
        assert rows[name].kilo_weights * 1024 == module_weights(name)
        side = PAPER[name][0][0]
        assert rows[name].mega_multiply_adds == side * side * module_weights(name) / 1e6


def test_the_sums_and_what_makes_their_difference(rows, published):
    ours, paper = table1.sums(published.table_1)
    assert (f"{ours:,.0f}", f"{paper:,.0f}") == ("1,583", "1,502")
    assert sum(int(ops) for *_, ops in PAPER.values()) == paper
    text = render.text([published])
    assert OWN not in text
    last = text.splitlines()[-1]
    assert last == "  sum: +81M: conv1 +84M, 5a -3M, and rounding"
    for name, (*_, ops) in PAPER.items():
        assert (abs(rows[name].mega_multiply_adds - int(ops)) >= 1) == (name in ("conv1", "5a"))


def test_each_reason_is_so(rows):
    separable = 7 * 7 * 3 * 8 + 3 * 8 * 64  # 8 filters for each colour, then 1x1 to 64 channels
    assert f"{separable:,} weights" in table1.WHY["conv1"]
    assert f"{separable / 1000:.1f}" == PAPER["conv1"][3] == "2.7"
    assert "in units of 1,000" in table1.WHY["conv1"]  # else 2.6K
    operations = 112 * 112 * separable / 1e6
    assert operations == pytest.approx(34.02, abs=0.005)
    assert f"{operations:.1f}M" in table1.WHY["conv1"]
    assert f"{operations:.0f}" == PAPER["conv1"][4]

    for name, column, ours, unit in (
        ("3a", 3, rows["3a"].kilo_weights, "K"),
        ("4a", 4, rows["4a"].mega_multiply_adds, "M"),
    ):
        assert f"{ours:.1f}{unit}" in table1.WHY[name]
        assert int(ours) == int(PAPER[name][column]) != round(ours)  # cut off, not rounded

    wider = 7 * 7 * module_weights("5a", reduce5=PAPER["5b"][2][3]) / 1e6
    assert f"{wider:.1f}M" in table1.WHY["5a"]
    assert f"{wider:.0f}" == PAPER["5a"][4]
    assert PAPER["5b"][2][3] == 48
    assert " 48 channels" in table1.WHY["5a"]

    # UNEXPLAINED says that these are made by the paper's own widths.
    unexplained = [name for name, row in rows.items() if table1.UNEXPLAINED in row.notes]
    assert unexplained == ["3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    assert all(rows[n].kilo_weights * 1024 == module_weights(n) for n in unexplained)


def test_a_row_has_a_note_where_it_differs_and_none_where_it_does_not(rows):
    for name, (*_, params, ops) in PAPER.items():
        row = rows[name]
        decimals = len(params.partition(".")[2])
        weights_differ = f"{row.kilo_weights:.{decimals}f}" != params
        operations_differ = f"{row.mega_multiply_adds:.0f}" != ops
        assert bool(row.notes) == (weights_differ or operations_differ), name
        assert operations_differ <= any("operations" in n or "34M" in n for n in row.notes), name
        assert weights_differ <= any("weights" in note for note in row.notes), name
    assert [name for name, row in rows.items() if not row.notes] == ["conv2", "linear"]


@pytest.mark.parametrize(
    "changed",
    [
        {"num_classes": 8},
        {"image_size": 192},
        {"width": 0.5},
        {"module": "naive"},
        {"projection": False},
        {"branches": "1x1,3x3"},
        {"kernel_5x5": 3},
        {"pool4_window": 2},
        {"batch_norm": True},
        {"small_stem": True, "auxiliary_heads": False},
    ],
    ids=str,
)
def test_another_network_is_not_explained_by_the_papers_reasons(changed):
    assert not any(row.notes for row in report(**changed).table_1)


@pytest.mark.parametrize(
    "changed", [{"num_classes": 8}, {"image_size": 192}, {"module": "naive"}], ids=str
)
def test_another_networks_table_says_that_it_is_another(changed):
    text = render.text([report(**changed)])
    assert text.endswith(f"\n{OWN}\n")
    assert "Where they differ" not in text


@pytest.mark.parametrize(
    "same",
    [
        {"module": "reduced", "projection": True, "branches": "1x1,3x3,5x5,pool"},
        {"lrn": False, "dropout": 0.1},
        {"auxiliary_heads": False},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_the_papers_network_is_that_however_it_is_asked_for(same, published):
    assert report(**same).table_1 == published.table_1


def test_rows_of_modules_left_out_are_left_out():
    """The depth of those after them is still their own."""
    other = report(modules="3a,4a,5b")
    assert [(row.row, row.depth) for row in other.table_1] == [
        ("conv1", 1),
        ("conv2", 2),
        ("3a", 2),
        ("4a", 2),
        ("5b", 2),
        ("linear", 1),
    ]
    assert table1.sums(other.table_1)[1] == 34 + 360 + 128 + 73 + 71 + 1
