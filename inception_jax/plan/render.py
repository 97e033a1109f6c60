"""What a person reads of a plan."""

from collections.abc import Iterator

from inception_jax.plan import roofline
from inception_jax.plan.collectives import BETWEEN_SLICES
from inception_jax.plan.report import Report
from inception_jax.plan.weigh import GIB, Memory

LIMITS = {  # of roofline.Times
    "compute": "compute",
    "memory": "memory",
    "interconnect": "interconnect",
    "network": "data-centre network",
}


def text(report: Report) -> str:
    """The whole report."""
    layout = " x ".join(f"{name} {size}" for name, size in report.layout.items())
    what = ("chip" if report.chip else "virtual device") + "s" * (report.num_devices > 1)
    what += "" if report.chip else " of this CPU"
    lines = [
        f"{report.name} on {report.topology}: {report.model}, {report.batch_size:,} images a step,"
        f" {report.num_devices} {what} ({layout})",
        "",
    ]
    lines += _unit(report)
    for step, needed, zeros in report.rows():
        lines += ["", f"{step.images} images of {step.image_size}x{step.image_size}"]
        lines += _memory(step.memory)
        lines += _flops(step, needed, zeros)
        lines += _collectives(step.collectives)
        if report.chip:
            lines += _times(report, step, needed)
    if report.too_large:
        told = f"{report.batch_size:,} images a step fit, {report.too_large:,} do not"
        lines += ["", f"the largest batch: {told}"]
    lines += ["", _recipe(report)]
    if report.chip:
        lines += [
            "",
            "These are ceilings from a roofline, not measurements: every limit at its data sheet's"
            " rate, all of them overlapped, nothing waited for. No chip has run this.",
        ]
    return "\n".join(lines) + "\n"


def _unit(report):
    if not report.chip:
        return ["What XLA says of one training step on one device:"]
    both = " (both of its cores)" if report.chip.cores == 2 else ""
    return [f"What the TPU compiler says of one training step on one chip{both}:"]


def _memory(memory: Memory) -> Iterator[str]:
    yield "  memory"
    for name, size in (
        ("state and batch", memory.held),
        ("the next batch", memory.next_batch),
        ("computed in between", memory.temporaries),
        ("program", memory.code),
    ):
        yield _row(name, _bytes(size))
    fits = ""
    if memory.available:
        spare = memory.available - memory.needed
        fits = f" of {_bytes(memory.available)}: fits, {_bytes(spare)} to spare"
    yield _row("in all", _bytes(memory.needed)) + fits


def _flops(step, needed, zeros) -> Iterator[str]:
    yield "  operations"
    counted = "2 a valid multiply-add of the cost command, forward and back"
    yield f"{_row('matrix products', _scaled(needed, 'FLOP'))}, {counted}"
    again = step.products - needed - zeros
    for name, number, why in (
        ("with zeros", zeros, "the 7x7/2 is computed over blocks"),
        ("again", max(again, 0), "what is not kept for want of memory"),
        ("left out", max(-again, 0), "what nothing needs"),
        ("others", step.other_flops, "pooling, norms, ReLU, update"),
    ):
        if number:
            yield f"{_row(name, _scaled(number, 'FLOP'))}, {number / needed:.1%} of those: {why}"
    yield (
        "  traffic of HBM, beside what stays in VMEM"
        if step.memory.available
        else "  traffic of memory"
    )
    yield _row("read and written", _scaled(step.traffic, "B"))


def _collectives(collectives) -> Iterator[str]:
    kinds: dict[tuple[str, int], list] = {}
    for each in collectives:
        kinds.setdefault((each.kind, each.devices), []).append(each)
    yield "  talk with others"
    for (kind, devices), group in kinds.items():
        times, size = sum(c.times for c in group), sum(c.times * c.size for c in group)
        among = f"{devices} slices" if kind == BETWEEN_SLICES else f"{devices} devices"
        sent = _scaled(sum(c.sent for c in group), "B")
        yield (_row(kind, _scaled(size, "B")) + f" in {times} among {among}; each sends {sent}")
    if not kinds:
        yield _row("none", "")


def _times(report, step, needed) -> Iterator[str]:
    times = roofline.times(step, report.chip)
    yield "  at least, by"
    for name, title in LIMITS.items():
        seconds = getattr(times, name)
        if seconds is None:
            yield _row(title, "unknown") + ": no figure of it was published"
        elif seconds:
            yield _row(title, f"{1e3 * seconds:,.3f} ms") + (
                ", which binds" if name == times.bound else ""
            )
    found = roofline.ceilings(step, needed, report.chip, report.num_devices)
    yield "  at most"
    yield _row("all chips", f"{found['images_per_second']:,.0f} images/s")
    yield _row("MFU", f"{found['mfu']:.1%}")


def _row(name, value):
    number, _, unit = value.partition(" ")
    return f"    {name:<20}{number:>10} {unit}".rstrip()


def _bytes(size):
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def _scaled(value, unit):
    """Three digits or more and a prefix."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:,.2f} {prefix}{unit}"
    return f"{value / 1e3:,.2f} k{unit}"


def _recipe(report):
    told = f"the whole recipe: {report.epochs:g} epochs, {report.total_steps:,} steps"
    if not report.chip:
        return told
    hours = report.hours
    lasting = f"{hours:,.2f} hours" if hours >= 1 else f"{60 * hours:,.2f} minutes"
    return (
        f"{told}: at least {lasting}, {hours * report.num_devices:,.1f} chip-hours, evaluation and"
        " checkpoints not counted"
    )
