"""When one process of several dies, does not come or is another, all end in time and say why."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, free_port

from inception_jax.cluster.line import Line

HERE = socket.gethostname()


class Member:
    """A process with its supervisor, and what it says."""

    def __init__(self, folder, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests/cluster/member.py", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def worker(self):
        """Waits until the worker works, and returns its process number."""
        line = self.process.stdout.readline()
        found = re.fullmatch(r"\d+ works, (\d+)\n", line)
        assert found, line + self.process.communicate()[1]
        return int(found[1])

    def end(self, seconds=30):
        """Waits for its end; returns the exit code and what was written to stderr."""
        _, error = self.process.communicate(timeout=seconds)
        return self.process.returncode, error


@pytest.fixture
def start(tmp_path):
    """Returns start(deeds, *settings) -> a Member for each deed that is not None."""
    with contextlib.ExitStack() as stack:

        def run(deeds, *settings):
            port, count = free_port(), len(deeds)
            members = [
                deed and Member(tmp_path, port, count, index, deed, *settings)
                for index, deed in enumerate(deeds)
            ]
            for member in filter(None, members):
                stack.callback(member.process.communicate)
                stack.callback(member.process.kill)
            return members

        yield run


def gone(pid):
    """Waits until there is no such process."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_all_end_well_when_all_have_worked(start, tmp_path):
    members = start(["work"] * 3)
    for member in members:
        member.worker()
    (tmp_path / "work").touch()
    assert [member.end() for member in members] == [(0, "")] * 3


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_worker_ends_all(victim, start):
    members = start(["work"] * 3)
    workers = [member.worker() for member in members]
    os.kill(workers[victim], signal.SIGKILL)
    reason = f"error: process {victim} of 3 on {HERE} was killed by SIGKILL\n"
    assert [member.end() for member in members] == [(1, reason)] * 3
    assert all(map(gone, workers))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_supervisor_ends_all_and_its_own_worker(victim, start):
    members = start(["work"] * 3)
    workers = [member.worker() for member in members]
    members[victim].process.kill()
    host = "localhost" if victim == 0 else HERE
    for number, member in enumerate(members):
        if number != victim:
            assert member.end() == (1, f"error: process {victim} of 3 on {host} is gone\n")
    assert all(map(gone, workers))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_falls_silent_ends_the_others_in_the_time_that_is_set(victim, start):
    members = start(["work"] * 3, "dead=12")
    workers = [member.worker() for member in members]
    os.kill(members[victim].process.pid, signal.SIGSTOP)
    began = time.monotonic()
    for number, member in enumerate(members):
        if number != victim:
            code, error = member.end()
            assert (code, error.count("\n")) == (1, 1)
            assert f"process {victim} of 3" in error
            assert "is silent" in error
            assert gone(workers[number])
    assert 4 < time.monotonic() - began < 12
    os.kill(members[victim].process.pid, signal.SIGCONT)
    code, error = members[victim].end()  # it has been given up, or finds the others gone
    assert code == 1
    assert re.fullmatch(r"error: process \d of 3 on \S+ is (silent|gone)\n", error)
    assert gone(workers[victim])


@pytest.mark.parametrize("deed", ["collapse", "abort"])
@pytest.mark.parametrize("first", [True, False])
def test_the_cause_is_told_where_its_consequence_comes_first(first, deed, start, tmp_path):
    """jax aborts on all other hosts, often before anything is known of the one that is gone."""
    members = start([deed, "work", deed] if first else ["work", "work", deed])
    workers = [member.worker() for member in members]
    (tmp_path / deed).touch()
    if deed == "abort":
        assert gone(workers[2])
    os.kill(workers[1], signal.SIGKILL)
    reason = f"error: process 1 of 3 on {HERE} was killed by SIGKILL\n"
    assert [member.end() for member in members] == [(1, reason)] * 3


def test_what_has_no_other_cause_is_told_with_all_that_native_code_printed(start, tmp_path):
    members = start(["work", "abort"])
    for member in members:
        member.worker()
    (tmp_path / "abort").touch()
    reason = f"error: process 1 of 2 on {HERE} was killed by SIGABRT\n"
    assert members[0].end() == (1, reason)
    assert members[1].end() == (1, f"*** SIGABRT received ***\n{reason}")


def test_an_error_of_one_is_told_by_all(start, tmp_path):
    members = start(["work", "fail"])
    for member in members:
        member.worker()
    (tmp_path / "fail").touch()
    assert members[1].end() == (1, "error: the disk is gone\n")
    assert members[0].end() == (1, f"error: process 1 of 2 on {HERE}: the disk is gone\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_worker_and_a_second_one_ends_all(number, start):
    members = start(["wait", "work"])
    workers = [member.worker() for member in members]
    members[0].process.send_signal(number)
    assert gone(workers[0])  # it has stopped well; the other would, were it jax's
    told = "stopping all processes after this step; a second signal stops at once\n"
    assert members[0].process.stdout.readline() == f"{number.name}: {told}"
    members[1].process.send_signal(number)
    assert members[1].process.stdout.readline() == f"{number.name}: {told}"
    members[1].process.send_signal(number)
    reason = f"error: process 1 of 2 on {HERE} was stopped by a second signal\n"
    assert [member.end() for member in members] == [(1, reason)] * 2
    assert gone(workers[1])


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_process_that_does_not_come_is_named(missing, start):
    deeds = [None if index == missing else "work" for index in range(3)]
    members = start(deeds, "start=6")
    began = time.monotonic()
    for member in filter(None, members):
        code, error = member.end()
        assert (code, error.count("\n")) == (1, 1)
        told = "no answer from process 0 at" if missing == 0 else f"process {missing} of 3 has not"
        assert error.startswith(f"error: {told}")
        assert "within 6 seconds: " in error
    assert time.monotonic() - began < 12


def test_processes_of_other_settings_are_refused(start):
    members = start(["work", None], "config.batch_size=32")
    port = members[0].process.args[2]
    other = Member(".", port, 2, 1, "work", "config.batch_size=64")
    reason = (
        f"error: process 1 of 2 on {HERE} has config.batch_size=64, process 0 has 32: start all"
        " with the same line\n"
    )
    assert members[0].end() == other.end() == (1, reason)


def test_a_place_that_is_taken_is_told(start):
    first, one, _ = start(["work", "work", None])
    port = first.process.args[2]
    again = Member(".", port, 3, 1, "work")
    told = "whose place is taken: give each its own --process_id, from 0"
    reason = f"error: {HERE} came as process 1 of 3, {told}\n"
    assert [member.end() for member in (first, one, again)] == [(1, reason)] * 3


def test_strangers_at_the_port_are_let_go(start, tmp_path):
    first, _ = start(["work", None])
    port = int(first.process.args[2])
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\n", b"[]\n", b'{"process": "1"}\n', b""):
        with connected(port - 1) as connection:
            connection.sendall(nonsense)
    other = Member(tmp_path, port, 2, 1, "work")
    first.worker(), other.worker()
    (tmp_path / "work").touch()
    assert first.end() == other.end() == (0, "")


def test_who_comes_is_heard_however_slow_the_network(start, tmp_path):
    """A config is longer than a packet."""
    first, _ = start(["work", None])
    with connected(int(first.process.args[2]) - 1) as connection:
        for part in (b'{"process": 1, "host"', b': "far", "run": {', b"}}\n"):
            connection.sendall(part)
            time.sleep(0.3)  # so that each comes by itself
        first.worker()
        assert b'{"go": true}' in connection.recv(4096)
        connection.sendall(b'{"done": true}\n')
        (tmp_path / "work").touch()
        assert first.end() == (0, "")


def connected(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_port_that_is_taken_is_told(start):
    port = free_port()
    with socket.create_server(("", port - 1)):
        code, error = Member(".", port, 2, 0, "work").end()
    assert code == 1
    assert error.startswith(f"error: cannot wait for the other processes at port {port - 1} (Addr")


def test_messages_come_whole_however_they_are_cut():
    one, other = socket.socketpair()
    with one, other:
        line = Line(other)
        one.sendall(b'{"a": 1}\n{"b"')
        assert line.receive() == [{"a": 1}]
        one.sendall(b": 2}\n{}\n")
        assert line.receive() == [{"b": 2}, {}]
