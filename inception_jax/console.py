"""What a run says on the terminal: a progress bar, lines worth keeping, and a table at the end."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.box
import rich.console
import rich.progress
import rich.table

SECONDS_BETWEEN_LINES = 10  # where the output is no terminal and there is no bar


class _Terminal(rich.console.Console):
    """A terminal that may go away: training goes on without it."""

    def on_broken_pipe(self):
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Writes to standard output; on a terminal a progress bar stays below the lines."""

    def __init__(self, quiet: bool = False):
        """Opens it; a quiet one writes nothing."""
        terminal = sys.stdout.isatty() and not quiet
        self._rich = _Terminal(
            highlight=False, soft_wrap=True, force_terminal=terminal, quiet=quiet
        )
        self._bar = None
        self._last_line = 0.0

    def line(self, text: str) -> None:
        """Prints a line as it is."""
        self._rich.print(text, markup=False)

    @contextmanager
    def progress(self, completed: int, total: int, at: str, numbers: str) -> Iterator[None]:
        """Shows progress from `completed` of `total` while the context lasts.

        Args:
          at: where it is, in words.
          numbers: what else there is to say.
        """
        if not self._rich.is_terminal:
            yield
            return
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("left"),
            console=self._rich,
            transient=True,
        )
        with self._bar:
            self._task = self._bar.add_task(at, total=total, completed=completed, numbers=numbers)
            yield
        self._bar = None

    def update(self, step: int, total: int, row: dict) -> None:
        """Shows a row of training metrics."""
        speed = f"{row['images_per_second']:.0f} images/s"
        numbers = f"loss {row['loss']:.4f}  rate {row['rate']:.4g}  {speed}"
        self.show(step, f"step {step}/{total}", numbers, row["seconds_left"])

    def show(self, completed: int, at: str, numbers: str, seconds_left: float) -> None:
        """Moves the bar; where there is none, prints a line if the last one is long ago."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, description=at, numbers=numbers)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.line(f"{at}  {numbers}  {_duration(seconds_left)} left")

    def evaluation(self, row: dict) -> None:
        """Prints a row of evaluation, a line for each size of images."""
        for end, where in _sizes(row).items():
            top1, top5, loss = (row[f"{name}{end}"] for name in ("top1", "top5", "loss"))
            self.line(
                f"step {row['step']}  epoch {row['epoch']:.1f}  evaluation: top-1 {top1:.4f}"
                f"  top-5 {top5:.4f}  loss {loss:.4f}  ({row['examples']} images)"
                + (f"  {where}" if where else "")
            )

    def summary(self, results: dict, workdir) -> None:
        """Prints the table that ends a run."""
        best = results["best"]
        rows = _numbers(results)
        rows["top-1"] += f"  (best {best['top1']:.4f} at step {best['step']})"
        rows |= {
            "steps": f"{results['step']:,}  ({results['epoch']:.1f} epochs)",
            "parameters": f"{results['parameters']:,}",
            "images/s in training": f"{results['images_per_second']:,.0f}",
            "wall time": _duration(results["wall_seconds"]),
            "results": str(workdir / "results.json"),
        }
        self._table("Results", rows)

    def evaluated(self, results: dict) -> None:
        """Prints the table that an evaluation alone makes."""
        self._table("Evaluation", _numbers(results) | {"checkpoint": str(results["step"])})

    def _table(self, title, rows):
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_header=False, title=title)
        for name, value in rows.items():
            table.add_row(name, value)
        self._rich.print(table)


def _numbers(results):
    """The rows of a table that say how good it is."""
    rows = {
        f"{told} {where}".rstrip(): f"{results[name + end]:.4f}"
        for end, where in _sizes(results).items()
        for told, name in (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss"))
    }
    return rows | {"images evaluated": f"{results['examples']:,}"}


def _sizes(row):
    """What the names of an evaluation's numbers end in, and the words for the size of images."""
    further = [name.removeprefix("top1") for name in row if name.startswith("top1_")]
    return {"": ""} | {end: f"at {end.removeprefix('_')} pixels" for end in further}


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
