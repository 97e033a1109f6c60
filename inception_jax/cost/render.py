"""What the command prints: tables for people, JSON and CSV for programs."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from inception_jax.cost.count import Layer
from inception_jax.cost.report import Report
from inception_jax.cost.table1 import Row, sums


def text(reports: Sequence[Report]) -> str:
    """One network layer by layer, or several side by side."""
    return _one(reports[0]) if len(reports) == 1 else _several(reports)


def as_json(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Everything there is of each network, as JSON values."""
    return [
        {
            "name": report.name,
            "model": report.model,
            "image_size": report.image_size,
            "num_classes": report.num_classes,
            "totals": report.totals(),
            "layers": [dataclasses.asdict(layer) for layer in report.layers],
            "table_1": [row._asdict() for row in report.table_1],
        }
        for report in reports
    ]


def as_csv(reports: Sequence[Report]) -> str:
    """A line a layer."""
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(Layer)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["network", *names])
    for report in reports:
        for layer in report.layers:
            values = dataclasses.asdict(layer) | {"output": _size(layer.output)}
            writer.writerow([report.name, *(values[name] for name in names)])
    return buffer.getvalue()


def _one(report):
    rows = [
        (
            layer.name + (" *" if layer.training_only else ""),
            layer.kind,
            layer.window,
            _size(layer.output),
            layer.depth if layer.weights else "",
            _number(layer.parameters),
            _mega(layer.multiply_adds),
            _mega(layer.valid_multiply_adds),
        )
        for layer in report.layers
    ]
    head = (
        "layer",
        "kind",
        "window",
        "output",
        "depth",
        "parameters",
        "multiply-adds M",
        "valid M",
    )
    parts = [f"{report.title}\n", _table(head, rows, left=4), _totals(report)]
    if report.table_1:
        parts.append(_table_1(report))
    return "\n".join(parts)


def _totals(report):
    totals = report.totals()
    lines = [
        f"depth                {totals['depth']} layers with weights",
        f"parameters           {totals['parameters']:,}",
    ]
    if totals["training_parameters"] != totals["parameters"]:
        extra = totals["training_multiply_adds"] - totals["multiply_adds"]
        lines.append(
            f"  in training        {totals['training_parameters']:,} (with *, the auxiliary heads,"
            f" {extra / 1e6:.1f} M multiply-adds more)"
        )
    lines += [
        f"multiply-adds        {totals['multiply_adds']:,} nominal, as papers count them",
        f"  valid              {totals['valid_multiply_adds']:,} whose taps do not fall on padding",
        f"flops, by XLA        {totals['xla_flops']:,}, {totals['xla_ratio'] - 1:.2%} more than two"
        " for each of those:",
    ]
    lines += [f"  {kind:<19}{flops:,}" for kind, flops in totals["other_flops"].items()]
    lines.append(f"  {'not explained':<19}{totals['unexplained_flops']:,}")
    return "\n".join(lines) + "\n"


def _table_1(report):
    rows = [
        (
            row.row,
            _size(row.output),
            row.depth,
            f"{row.kilo_weights:.1f}K",
            f"{row.paper_kilo_weights:g}K",
            f"{row.mega_multiply_adds:.1f}M",
            f"{row.paper_mega_multiply_adds:g}M",
        )
        for row in report.table_1
    ]
    ours, paper = sums(report.table_1)
    rows.append(("sum", "", "", "", "", f"{ours:,.0f}M", f"{paper:,.0f}M"))
    head = ("row", "output", "depth", "params", "paper's", "ops", "paper's")
    lines = ["Beside Table 1 of the paper (weights without biases, K = 1,024; M = 10^6)\n"]
    lines.append(_table(head, rows, left=2))
    notes = _notes(report.table_1)
    if notes:
        more = {r.row: r.mega_multiply_adds - r.paper_mega_multiply_adds for r in report.table_1}
        large = [f"{row} {value:+.0f}M" for row, value in more.items() if abs(value) >= 1]
        lines.append("Where they differ:")
        lines += notes
        lines.append(f"  sum: {ours - paper:+.0f}M: {', '.join(large)}, and rounding")
    else:
        lines.append("Not the paper's network, size and classes, so differences are its own.")
    return "\n".join(lines) + "\n"


def _notes(rows: Sequence[Row]) -> list[str]:
    """A line for each explanation, with the rows that it is of."""
    why: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            why.setdefault(note, []).append(row.row)
    return [f"  {', '.join(names)}: {note}" for note, names in why.items()]


def _several(reports):
    rows = []
    for report in reports:
        totals = report.totals()
        rows.append(
            (
                report.name,
                _size((report.image_size,) * 2),
                totals["depth"],
                _number(totals["parameters"]),
                _mega(totals["multiply_adds"]),
                _mega(totals["valid_multiply_adds"]),
                f"{totals['multiply_adds'] / reports[0].totals()['multiply_adds']:.2f} x",
            )
        )
    head = ("network", "input", "depth", "parameters", "multiply-adds M", "valid M", "to the first")
    parts = [_table(head, rows, left=2)]
    if all(report.model == "googlenet" for report in reports):
        parts.append(_branches(reports))
    return "\n".join(parts)


def _branches(reports):
    """Multiply-adds of every branch, a reduction and what it feeds written as a sum."""
    branches = [report.branches() for report in reports]
    names = list(dict.fromkeys(name for each in branches for name in each))
    head = ("millions of multiply-adds", *(report.name for report in reports))
    rows = []
    for name in names:
        parts = [each.get(name, []) for each in branches]
        row = (name, *(" + ".join(f"{part / 1e6:.1f}" for part in each) or "-" for each in parts))
        if len(reports) == 2:
            first, second = map(sum, parts)
            row += (f"{1 - first / second:.0%} fewer" if second > first > 0 else "",)
        rows.append(row)
    if len(reports) == 2:
        head += ("in the first",)
    return "\n" + _table(head, rows, left=1)


def _table(head, rows, left):
    """Columns of text, the first ones flush left."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _size(output):
    return "x".join(map(str, output))


def _number(value):
    return f"{value:,}" if value else ""


def _mega(value):
    return f"{value / 1e6:,.1f}" if value else ""
