"""A trace of some training steps for XProf, which shows what hosts and devices do in them.

python -m inception_jax.main --config=configs/digits.py --config.profile=20:25
pip install xprof && tensorboard --logdir=runs/digits/profile
"""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from inception_jax import validate
from inception_jax.clock import Clock
from inception_jax.errors import UserError


class Profile:
    """Traces the steps that config.profile names, as far as a run gets to them."""

    def __init__(self, steps: str, folder: Path, total_steps: int, say: Callable[[str], None]):
        """
        Args:
          steps: config.profile.
          folder: of the traces of all hosts.
          total_steps: of the run.
          say: tells the user where a trace is.

        Raises:
          UserError: the run ends before these steps do.
        """
        self._steps = validate.profiled(steps)
        if self._steps.stop > total_steps + 1:
            raise UserError(
                f"config.profile={steps} goes past the end of the run at step {total_steps}: take"
                f" a STOP of {total_steps + 1} at most"
            )
        self._folder, self._say = folder, say
        # Profilers name files by the name of the host, which processes on one machine share.
        self._host = f"host{jax.process_index()}"
        self._unfinished = folder / f".{self._host}"
        self._first: int | None = None  # step of the trace that is being taken

    def around(
        self, batches: Iterable[Any], step: int, state: Callable[[], Any], clock: Clock
    ) -> Iterator[Any]:
        """Yields each batch, annotates what happens until the next one, and traces what is due.

        Args:
          batches: of the steps to come.
          step: the last one before them.
          state: returns arrays that the devices have when they have done all steps so far.
          clock: to count the waiting for them, but not what tracing takes.
        """
        batches = iter(batches)
        for number in itertools.count(step + 1):
            tracing = self._first is not None
            if (number in self._steps) != tracing:
                with clock.waiting_for_device():
                    jax.block_until_ready(state())
                with clock.paused():
                    self._write() if tracing else self._start(number)
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def close(self) -> None:
        """Drops a trace whose end the run did not reach, whatever comes of it."""
        if self._first is not None:
            with contextlib.suppress(Exception):
                jax.profiler.stop_trace()
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def _start(self, step):
        shutil.rmtree(self._unfinished, ignore_errors=True)  # of a run that was killed
        jax.profiler.start_trace(self._unfinished)
        self._first = step

    def _write(self):
        first, stop, self._first = self._first, self._steps.stop, None
        file = self._folder / f"plugins/profile/steps_{first}_{stop}/{self._host}.xplane.pb"
        try:
            jax.profiler.stop_trace()
            (traced,) = self._unfinished.rglob("*.xplane.pb")
            file.parent.mkdir(parents=True, exist_ok=True)
            traced.rename(file)
        except (OSError, RuntimeError) as error:  # of jax the latter; training can do without
            self._say(f"could not write the trace {file}: {error}")
        else:
            self._say(
                f"traced steps {first} to {stop - 1}: pip install xprof and run"
                f" tensorboard --logdir={self._folder}"
            )
        shutil.rmtree(self._unfinished, ignore_errors=True)
