"""How the supervisors of a run meet, at process 0's, and how that decides for all.

to process 0    {"process": 1, "host": ..., "run": ...}; {"done": true};
                {"failed": why, "sure": whether that is the cause and no consequence}
from process 0  {"go": true}; {"end": true}: all are done; {"stop": why, "process": whose fault}
both            {}: alive
"""

import contextlib
import json
import socket
import time

from inception_jax.cluster.line import PATIENCE, Line, Lost
from inception_jax.cluster.supervisor import TICK, Supervisor
from inception_jax.errors import UserError

GRACE = 5.0  # seconds that a cause may come later than its consequences


class First(Supervisor):
    """Process 0's: the others come to it, and it decides."""

    def meet(self) -> None:
        """Waits for all others.

        Raises:
          UserError: the port is taken, one has not come in time, or is of another run.
        """
        self.about = json.loads(json.dumps(self.about))  # as the others' will be
        self.done: set[int] = set()
        self.suspected: tuple[float, dict] | None = None  # until when, and what if nothing comes
        strangers: list[Line] = []
        with self._server() as server:
            while len(self.lines) < self.cluster.count - 1 and not self.signals:
                if time.monotonic() > self.deadline:
                    self._give_up()
                for ready in self.listen(server, *strangers):
                    if ready is server:
                        strangers.append(Line(server.accept()[0]))
                    elif self._hear(ready):
                        strangers.remove(ready)
        for line in strangers:
            line.close()
        if not self.signals:
            self._tell_all(go=True)

    def _server(self):
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        _, port = self.meeting_point
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            raise UserError(
                f"cannot wait for the other processes at port {port} ({error.strerror}): end what"
                f" uses it, or take another --coordinator_address than {self.cluster.address}"
            ) from None

    def _hear(self, line):
        """Takes what one says who has just come; returns whether that was all that is needed."""
        try:
            messages = line.receive()
        except Lost:
            messages = [None]
        match messages:
            case []:  # not all of it has come yet
                return False
            case [{"process": int(process), "host": str(host), "run": dict(run)}]:
                line.host = host
                self._welcome(line, process, run)
            case _:
                line.close()
        return True

    def _welcome(self, line, process, run):
        if not 0 < process < self.cluster.count or process in self.lines:
            why = (
                f"{line.host} came as process {process} of {self.cluster.count}, whose place is"
                " taken: give each its own --process_id, from 0"
            )
        else:
            self.lines[process] = line
            names = sorted(self.about.keys() | run)
            other = [name for name in names if self.about.get(name) != run.get(name)]
            if not other:
                return
            name = other[0]
            why = (
                f"{self.name(process)} has {name}={run.get(name)}, process 0 has"
                f" {self.about.get(name)}: start all with the same line"
            )
        with contextlib.suppress(Lost):
            line.send(stop=why, process=0)
        self._tell_all(stop=why, process=0)
        raise UserError(why)

    def _give_up(self):
        missing = [n for n in range(1, self.cluster.count) if n not in self.lines]
        why = (
            f"process {', '.join(map(str, missing[:5]))}{', ...' if missing[5:] else ''} of"
            f" {self.cluster.count} has not come within {self.start:g} seconds: start all, or"
            " raise config.cluster.start_timeout"
        )
        self._tell_all(stop=why, process=0)
        raise UserError(why)

    def listen(self, *more):
        """As in Supervisor; a suspicion becomes a verdict after a while."""
        ready = super().listen(*more)
        if self.worker and not self.stop and self.suspected:
            until, verdict = self.suspected
            if time.monotonic() > until:
                self._decide(verdict)
        return ready

    def on_message(self, process, message):
        """Takes what another supervisor says."""
        match message:
            case {"done": True}:
                self._one_done(process)
            case {"failed": why, "sure": sure}:
                self._blame(process, why, sure)

    def on_lost(self, process, why):
        """Takes it that another supervisor is gone; while they meet it may come again."""
        if self.worker and not self.end:
            self._blame(process, why, True)

    def on_done(self):
        """The worker has done its work."""
        self._one_done(0)

    def on_failed(self, why, sure):
        """The worker has failed."""
        self._blame(0, why, sure)

    def _one_done(self, process):
        self.done.add(process)
        if len(self.done) == self.cluster.count:
            self.end = True
            self._tell_all(end=True)

    def _blame(self, process, why, sure):
        verdict = {"stop": why, "process": process}
        if sure:
            self._decide(verdict)
        elif not self.suspected:
            self.suspected = time.monotonic() + GRACE, verdict

    def _decide(self, verdict):
        if not self.stop:
            self.stop = verdict
            self._tell_all(**verdict)

    def _tell_all(self, **message):
        for line in self.lines.values():
            with contextlib.suppress(Lost):
                line.send(**message)


class Other(Supervisor):
    """That of another process: it tells process 0, and does what that says."""

    def meet(self) -> None:
        """Goes to process 0 and waits until all are there.

        Raises:
          UserError: process 0 does not answer, or knows that something is wrong.
        """
        self.go = False
        while not (self.go or self.signals):
            if 0 not in self.lines:
                if time.monotonic() > self.deadline:
                    raise UserError(
                        f"no answer from process 0 at {self.cluster.address} within"
                        f" {self.start:g} seconds: start it, or mend --coordinator_address"
                    )
                self._connect()
            self.listen()
            if self.stop:
                raise UserError(self.stop["stop"])

    def _connect(self):
        try:
            line = Line(socket.create_connection(self.meeting_point, timeout=PATIENCE))
            line.host = self.meeting_point[0]
            line.send(process=self.cluster.index, host=socket.gethostname(), run=self.about)
            self.lines[0] = line
        except (OSError, Lost):
            time.sleep(TICK)

    def on_message(self, process, message):
        """Takes what process 0 says."""
        match message:
            case {"go": True}:
                self.go = True
            case {"end": True}:
                self.end = True
            case {"stop": str(), "process": int()}:
                self.stop = message

    def on_lost(self, process, why):
        """Process 0 is gone; while they meet it may come again."""
        if self.worker and not (self.end or self.stop):
            self.stop = {"stop": why, "process": process}

    def on_done(self):
        """The worker has done its work."""
        self._tell(done=True)

    def on_failed(self, why, sure):
        """The worker has failed."""
        self._tell(failed=why, sure=sure)

    def _tell(self, **message):
        with contextlib.suppress(Lost, KeyError):
            self.lines[0].send(**message)
