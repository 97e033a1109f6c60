"""Pictures of what networks cost: one by its parts, several among each other."""

from collections.abc import Sequence
from pathlib import Path

from inception_jax.cost.report import Report
from inception_jax.cost.table1 import PAPER
from inception_jax.figures import plt, save

# Names and published top-5 errors in % on ImageNet's validation set, of one network and its paper's
# views of each image, by recipe of configs/imagenet.py.
LINEUP = {
    "alexnet": ("AlexNet", 18.2),  # ten crops
    "zfnet": ("ZFNet", 16.4),  # ten crops
    "vgg16": ("VGG-16", 8.1),  # dense, at several scales
    "sppnet_overfeat7": ("SPP-net", 9.14),  # many views at several scales
    "googlenet": ("GoogLeNet", 7.89),  # paper, Table 3: one network, 144 crops
}
FIELDS = {"multiply_adds": "multiply-adds", "parameters": "parameters"}  # of the two panels


def draw(reports: Sequence[Report], out: Path) -> None:
    """Draws one network's blocks, those of several GoogLeNets, or several networks' totals.

    Where the published error of each of several is known, it is drawn over their multiply-adds.

    Args:
      reports: one or more.
      out: the file to write; its ending is the format.

    Raises:
      UserError: the file cannot be written, or matplotlib does not know the format.
    """
    if len(reports) > 1 and all(report.name in LINEUP for report in reports):
        figure = _draw_lineup(reports)
    elif len(reports) > 1 and any(report.model != "googlenet" for report in reports):
        figure = _draw_totals(reports)
    else:
        figure = _draw_blocks(reports)
    save(figure, out)


def _draw_lineup(reports):
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for report in reports:
        totals, (label, error) = report.totals(), LINEUP[report.name]
        billions, millions = totals["multiply_adds"] / 1e9, totals["parameters"] / 1e6
        ours = report.name == "googlenet"
        colour = "C3" if ours else "C0"
        axes.scatter(billions, error, s=12 * millions, color=colour, alpha=0.5, lw=0)
        axes.scatter(billions, error, s=8, color="black")
        axes.annotate(
            f"{label}: {error:g} %\n{millions:.0f} M parameters",
            (billions, error),
            textcoords="offset points",
            xytext=(0, 6 + (12 * millions / 3.14) ** 0.5),
            ha="center",
            weight="bold" if ours else "normal",
        )
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10, 20)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.4, 30)
    axes.set_ylim(0, 24)
    axes.set_xlabel("multiply-adds for one view of an image, in billions (log scale)")
    axes.set_ylabel("published top-5 error on ImageNet in % (one network, its paper's views)")
    axes.set_title("The ILSVRC line-up: accuracy over cost; areas are parameters", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_totals(reports):
    names = [report.name for report in reports]
    height = 1.2 + 0.35 * len(names)
    figure, panels = plt.subplots(1, 2, figsize=(10, height), sharey=True, layout="constrained")
    for axes, field in zip(panels, FIELDS, strict=True):
        bars = axes.barh(names, [report.totals()[field] / 1e6 for report in reports])
        axes.bar_label(bars, fmt="{:,.1f}", padding=3)
        axes.margins(x=0.15)
    _finish(panels)
    return figure


def _draw_blocks(reports):
    names = list(dict.fromkeys(name for report in reports for name in report.blocks()))
    height = 1.2 + 0.16 * len(names) * (len(reports) + 1)
    figure, panels = plt.subplots(1, 2, figsize=(10, height), sharey=True, layout="constrained")
    thickness = 0.8 / len(reports)
    for number, report in enumerate(reports):
        places = [i + thickness * (number - (len(reports) - 1) / 2) for i in range(len(names))]
        for axes, field in zip(panels, FIELDS, strict=True):
            widths = [
                sum(getattr(layer, field) for layer in report.blocks().get(name, ())) / 1e6
                for name in names
            ]
            total = report.totals()[field] / 1e6
            axes.barh(places, widths, thickness, label=f"{report.name}: {total:,.1f} M")
    published = len(reports) == 1 and reports[0].table_1
    if published:
        _mark_paper(panels, names, published)
    for axes in panels:
        axes.legend(loc="best")
    panels[0].set_yticks(range(len(names)), names)
    _finish(panels)
    return figure


def _finish(panels):
    for axes, label in zip(panels, FIELDS.values(), strict=True):
        axes.set_xlabel(f"{label}, in millions")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()


def _mark_paper(panels, names, rows):
    rows = [row for row in rows if PAPER[row.row][0] in names]  # not those without weights
    places = [names.index(PAPER[row.row][0]) for row in rows]
    paper = (
        [row.paper_mega_multiply_adds for row in rows],
        [row.paper_kilo_weights * 1024 / 1e6 for row in rows],
    )
    for axes, values in zip(panels, paper, strict=True):
        axes.plot(values, places, "k|", ms=10, mew=2, label="the paper's Table 1")
