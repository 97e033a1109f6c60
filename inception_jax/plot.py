"""Draws the curves of one run, or of several side by side, from their metrics.jsonl.

python -m inception_jax.plot runs/fashion_mnist --out=curve.png
"""

import json
import sys
from pathlib import Path

from absl import flags

from inception_jax import process
from inception_jax.errors import UserError

FLAGS_HELP = """\
  --out=FILE  the picture: .png, .svg or .pdf; curve.png if not given
"""


@process.command(__doc__, FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", "curve.png", "", flag_values=values)
    try:
        workdirs = [Path(name) for name in values(argv)[1:]]
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from None
    if not workdirs:
        raise UserError(
            "name a workdir, as in: python -m inception_jax.plot runs/digits --out=curve.png"
        )
    names = {workdir.name for workdir in workdirs}
    short = len(names) == len(workdirs)
    runs = {workdir.name if short else str(workdir): read(workdir) for workdir in workdirs}
    plot(runs, Path(values.out))
    print(f"curves of {', '.join(map(str, workdirs))} are in {values.out}")


def read(workdir: Path) -> dict[str, list[dict]]:
    """Reads a run's metrics.jsonl.

    Returns:
      Its rows by kind: train, eval.

    Raises:
      UserError: there is none, or it holds no evaluation yet.
    """
    file = workdir / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "eval")}
    except OSError as error:
        raise UserError(f"could not read {file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged: start the run again, which mends it") from None
    if not kinds["eval"]:
        raise UserError(f"{file} holds no evaluation yet: wait for the first one")
    return kinds


def plot(runs: dict[str, dict[str, list[dict]]], out: Path) -> None:
    """Draws accuracy and loss over epochs: dots and lines for evaluations, pale for training.

    The training loss is what is optimised: of augmented images, and of smoothed labels if they are.

    Args:
      runs: label -> rows by kind, as from read.
      out: the file to write; its ending is the format.

    Raises:
      UserError: the file cannot be written, or matplotlib does not know the format.
    """
    from matplotlib.ticker import PercentFormatter

    from inception_jax.figures import plt, save

    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (label, rows) in enumerate(runs.items()):
        colour = f"C{number}"
        for axes, trained, evaluated in ((accuracy, "top1", "top1"), (loss, "main_loss", "loss")):
            x, y = _means(
                [row["epoch"] for row in rows["train"]], [r[trained] for r in rows["train"]]
            )
            axes.plot(x, y, color=colour, alpha=0.4, lw=1, label=f"{label}, training batches")
            x, y = [row["epoch"] for row in rows["eval"]], [row[evaluated] for row in rows["eval"]]
            axes.plot(x, y, color=colour, marker=".", label=f"{label}, evaluation")
        last = rows["eval"][-1]
        accuracy.annotate(
            f"{last['top1']:.2%}",
            (last["epoch"], last["top1"]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="right",
            color=colour,
        )
    # Whatever happened in the first steps would flatten the rest of the curves.
    evaluations = [row for rows in runs.values() for row in rows["eval"]]
    lowest = min(row["top1"] for row in evaluations)
    accuracy.set_ylim(max(0, lowest - 0.5 * (1 - lowest)), 1.005)
    loss.set_ylim(0, 2 * max(row["loss"] for row in evaluations))
    accuracy.set_ylabel("top-1 accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set_ylabel("loss of the main classifier")
    loss.legend()
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    save(figure, out)


def _means(x, y, points=30):
    """Means of as many stretches, since single batches hide the trend."""
    import numpy as np

    groups = np.array_split(np.arange(len(x)), min(len(x), points) or 1)
    return tuple([np.mean(np.take(values, g)) for g in groups if len(g)] for values in (x, y))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
