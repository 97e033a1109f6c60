"""Processes that run side by side, and are stopped as one."""

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

STOPPED = 128 + signal.SIGTERM  # the exit code of who was asked to stop


class Processes:
    """Commands that are stopped by a signal to this process.

    SIGTERM is passed on, once, as a second one means to stop without saving, and clusters may send
    several. SIGINT is not, as Ctrl-C reaches all processes of a terminal by itself.

    Attributes:
      stopped: whether there has been a signal.
    """

    def __init__(self, keep: Sequence[int] = ()):
        """Does nothing yet.

        Args:
          keep: descriptors that the commands get.
        """
        self._keep = keep
        self.stopped = False
        self._running: list[subprocess.Popen] = []
        self._before: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, commands: list[list[str]]) -> list[int]:
        """Runs the commands, waits for all, and returns their exit codes."""
        self._running = []
        for command in commands:
            self._running.append(subprocess.Popen(command, pass_fds=self._keep))
        if self.stopped:  # meanwhile
            self._end()
        return [each.wait() for each in self._running]

    def _stop(self, number, _):
        first, self.stopped = not self.stopped, True
        if first and number == signal.SIGTERM:
            self._end()

    def _end(self):
        for each in self._running:
            each.terminate()
