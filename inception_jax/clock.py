"""What the time of training is spent on: waiting for data, for the device, or the host's work."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any


class Clock:
    """Time spent in training steps, what it was spent on of late, and the speed."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.start()

    def start(self) -> None:
        """Begins anew."""
        self._started = self._since = time.monotonic()
        self._steps, self._for_data, self._for_device = 0, 0.0, 0.0

    def stop(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self._started

    def tick(self) -> None:
        """Counts a step."""
        self._steps += 1

    def lap(self) -> dict[str, float]:
        """What happened since the last call: images_per_second, and three shares of the time.

        The shares add up to 1: data_wait, without a batch; device_wait, until the device has its
        results; host, all that the loop does itself.
        """
        now = time.monotonic()
        passed = now - self._since
        found = {
            "images_per_second": self._steps * self._batch_size / passed,
            "data_wait": self._for_data / passed,
            "device_wait": self._for_device / passed,
            "host": (passed - self._for_data - self._for_device) / passed,
        }
        self._since, self._steps, self._for_data, self._for_device = now, 0, 0.0, 0.0
        return found

    def waiting_for(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields each batch, and adds up how long it took to come."""
        batches = iter(batches)
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self._for_data += time.monotonic() - before
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def waiting_for_device(self) -> Iterator[None]:
        """Adds up how long the context lasts."""
        before = time.monotonic()
        yield
        self._for_device += time.monotonic() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Counts no time while the context lasts."""
        before = time.monotonic()
        yield
        passed = time.monotonic() - before
        self._started += passed
        self._since += passed
