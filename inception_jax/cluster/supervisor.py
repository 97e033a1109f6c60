"""Watches over one process of a run; if one dies, all end within a set time and say why.

jax itself would wait for minutes and then abort with a native stack trace. So before jax is asked,
the supervisors of all processes meet (meeting.py), and while their workers work they tell each
other that they are alive. A connection that ends, or is silent for too long, is a dead process.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from inception_jax.cluster import Cluster
from inception_jax.cluster.line import Line, Lost
from inception_jax.cluster.worker import STREAMS, WORKER
from inception_jax.errors import UserError
from inception_jax.process import STARTED

TICK = 0.2  # seconds between looks at clocks and signals


class Supervisor:
    """One process's, whichever it is; First and Other know how they meet and who decides."""

    def __init__(self, cluster: Cluster, run: dict[str, Any], start: float, dead: float):
        """Does nothing yet.

        Args:
          cluster: this process's place.
          run: JSON values by name, on which all processes have to agree.
          start: seconds after which processes that have not come are given up.
          dead: seconds after which all others have ended when one has died.
        """
        self.cluster, self.about, self.start, self.dead = cluster, run, start, dead
        self.deadline = STARTED + 0.95 * start  # of meeting, so that all end in time
        host, _, port = cluster.address.rpartition(":")
        self.meeting_point = host.strip("[]"), int(port) - 1
        self.lines: dict[int, Line] = {}  # to supervisors, by process
        self.worker: subprocess.Popen | None = None
        self.control: Line | None = None  # to the worker
        self.joined = False  # the worker knows what SIGTERM means
        self.failure, self.sure = "", True  # of the worker
        self.signals: list[str] = []
        self.told_alive = 0.0
        self.end = False  # all are done
        self.stop: dict[str, Any] = {}  # what made all stop

    def supervise(self) -> int:
        """Meets the others, runs the worker and ends with it, or with them.

        Returns:
          The exit code.

        Raises:
          UserError: something is wrong here or there.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            self.meet()
            if self.signals:
                print(f"stopped by {self.signals[0]} before all processes were there")
                return 0
            log = stack.enter_context(tempfile.TemporaryFile())
            self._start_worker(log)
            while not (self.end or self.stop):
                self._turn()
            if self.end:
                return self.worker.wait()
            self._end_worker()
            if self.stop["process"] != self.cluster.index:
                raise UserError(self.stop["stop"])
            if not self.sure:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))
            raise UserError(self.failure or self.stop["stop"])  # the latter if it was given up

    def meet(self) -> None:
        """Returns when all are there, or when a signal has come."""
        raise NotImplementedError

    def on_message(self, process: int, message: dict[str, Any]) -> None:
        """Takes what another supervisor says."""
        raise NotImplementedError

    def on_lost(self, process: int, why: str) -> None:
        """Takes it that another supervisor is gone."""
        raise NotImplementedError

    def on_done(self) -> None:
        """The worker has done its work."""
        raise NotImplementedError

    def on_failed(self, why: str, sure: bool) -> None:
        """The worker has failed."""
        raise NotImplementedError

    def listen(self, *more: Line | socket.socket) -> list:
        """Hands over what others say, tells them that this one lives; returns who else is ready."""
        now = time.monotonic()
        if now - self.told_alive > self.dead / 6:
            self.told_alive = now
            for process, line in list(self.lines.items()):
                try:
                    line.send()
                except Lost:
                    self._lose(process, "is gone")
        with selectors.DefaultSelector() as selector:
            for each in (*self.lines.values(), *more):
                selector.register(each, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(TICK)]
        for process, line in list(self.lines.items()):
            try:
                for message in line.receive() if line in ready else ():
                    self.on_message(process, message)
            except Lost:
                self._lose(process, "is gone")
            else:
                if time.monotonic() - line.heard > self.dead * 2 / 3:
                    self._lose(process, "is silent")
        return [each for each in ready if each in more]

    def name(self, process: int | None = None) -> str:
        """What a process, or this one, is called in messages."""
        if process is None:
            process, host = self.cluster.index, socket.gethostname()
        else:
            host = self.lines[process].host
        return f"process {process} of {self.cluster.count} on {host}"

    def _lose(self, process, why):
        told = f"{self.name(process)} {why}"
        self.lines.pop(process).drop()
        self.on_lost(process, told)

    def _turn(self):
        if self.listen(*([self.control] if self.control else ())):
            try:
                for message in self.control.receive():
                    self._on_worker(message)
            except Lost:
                self.control.close()
                self.control = None
                self._judge(self.worker.wait())
        if self.signals and self.joined:
            self.joined = False  # it is told once
            self.worker.terminate()
        if len(self.signals) > 1:
            self._fail(f"{self.name()} was stopped by a second signal")

    def _on_worker(self, message):
        match message:
            case {"joined": True}:
                self.joined = True
            case {"error": why}:
                self._fail(why, f"{self.name()}: {why}")
            case {"lost": why}:
                self._fail(f"{self.name()} failed in a computation: {why}", sure=False)

    def _judge(self, code):
        if code == 0:
            self.on_done()
        elif code < 0:
            # jax aborts where others are gone
            name = signal.Signals(-code).name
            self._fail(f"{self.name()} was killed by {name}", sure=code != -signal.SIGABRT)
        else:
            self._fail(f"{self.name()} ended with exit code {code}", sure=False)

    def _fail(self, here, there=None, sure=True):
        """Takes it that the worker has failed, as told here and told to the others."""
        if not self.failure:
            self.failure, self.sure = here, sure
            self.on_failed(there or here, sure)

    def _on_signal(self, number, _):
        self.signals.append(signal.Signals(number).name)
        if self.worker and len(self.signals) == 1:
            told = "stopping all processes after this step; a second signal stops at once"
            print(f"{self.signals[0]}: {told}", flush=True)

    def _start_worker(self, log):
        ours, theirs = socket.socketpair()
        streams = {name: os.dup(getattr(sys, name).fileno()) for name in STREAMS}
        told = {"cluster": self.cluster, "control": theirs.fileno(), "dead": self.dead} | streams
        self.worker = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=os.environ | {WORKER: json.dumps(told)},
            pass_fds=(theirs.fileno(), *streams.values()),
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the supervisor
        )
        theirs.close()
        for stream in streams.values():
            os.close(stream)
        self.control = Line(ours)

    def _end_worker(self):
        self.worker.kill()
        self.worker.wait()

    def _close(self):
        for line in self.lines.values():
            line.close()
        if self.control:
            self.control.close()
