"""Watching a queued resource, with a gcloud that remembers what it was told."""

import json
import os
import sys

import pytest
from conftest import ROOT

from inception_jax.errors import UserError
from launch import job, tpu

FOLDER = "gs://some-bucket/all/runs/first/"
ARGUMENTS = (
    *("--name=first", "--topology=v5e:4x4", "--image=i:1", "--bucket=gs://some-bucket/all"),
    *("--zone=z", "--spot", "--config=configs/digits.py", "--workdir=runs/first"),
)
# What it knows is in a file: resources by name, files of the bucket, what was done, and whether it
# reaches anything.
GCLOUD = f"""#!{sys.executable}
import json, os, sys
path = os.environ["STATE"]
state = json.load(open(path))
words = sys.argv[1:]
if words[0] == "storage":
    verb, target = words[1:3]
    if verb == "ls":
        found = [name for name in state["files"] if name.startswith(target)]
        print(*found, sep=chr(10))
        sys.exit(not found)
    state["files"] = [name for name in state["files"] if name != target]
else:
    verb = words[3]
    if state["fails"]:
        print("ERROR: no network", file=sys.stderr)
        sys.exit(1)
    if verb == "list":
        at = "projects/p/locations/z/queuedResources/"
        found = state["resources"].items()
        print(json.dumps([dict(name=at + n, state=dict(state=s)) for n, s in found]))
    else:
        state["done"].append(verb)
        if verb == "create":
            state["resources"][words[4]] = "WAITING_FOR_RESOURCES"
        else:
            del state["resources"][words[4]]
json.dump(state, open(path, "w"))
"""


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Returns watch(*events, files, fails) -> what was done; an event happens between two looks."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    path = tmp_path / "state.json"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(path))

    def watch(*events, files=(), fails=False):
        state = {"resources": {"other": "ACTIVE"}, "files": list(files), "done": [], "fails": fails}
        path.write_text(json.dumps(state))
        coming = iter(events)

        def wait():
            state = json.loads(path.read_text())
            next(coming)(state)
            path.write_text(json.dumps(state))

        asked = job.read(["tpu", *ARGUMENTS], tpu._define)
        try:
            tpu.watch(asked, tpu.create(asked, "v5e", "4x4", tmp_path / "startup.sh"), wait)
        finally:
            watch.state = json.loads(path.read_text())
        assert next(coming, None) is None  # it looked as often as was to be expected
        return watch.state["done"]

    return watch


def becomes(name):
    return lambda state: state["resources"].update(first=name)


def writes(name):
    return lambda state: state["files"].append(FOLDER + name)


def network(is_there):
    return lambda state: state.update(fails=not is_there)


def nothing(_):
    """Happens."""


def test_it_asks_waits_and_gives_back(watch, capsys):
    events = (becomes("PROVISIONING"), becomes("ACTIVE"), writes("step"), writes("results.json"))
    assert watch(*events) == ["create", "delete"]
    assert watch.state["resources"] == {"other": "ACTIVE"}
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == ["first: asked for", "first: PROVISIONING", "first: ACTIVE"]
    assert told[3] == f"first: finished, and its TPUs are given back; see {FOLDER}"


@pytest.mark.parametrize("gone", ["SUSPENDED", "FAILED"])
def test_what_was_preempted_is_asked_for_again(watch, gone):
    events = (becomes("ACTIVE"), becomes(gone), nothing, becomes("ACTIVE"), writes("results.json"))
    assert watch(*events) == ["create", "delete", "create", "delete"]


def test_a_run_that_gave_up_does_not_keep_its_chips(watch):
    with pytest.raises(UserError, match=f"failed again and again, and its TPUs .* {FOLDER}gave_up"):
        watch(becomes("ACTIVE"), writes("gave_up.txt"))
    assert watch.state["resources"] == {"other": "ACTIVE"}


def test_that_an_earlier_attempt_gave_up_does_not_matter(watch):
    files = [f"{FOLDER}gave_up.txt"]
    assert watch(becomes("ACTIVE"), writes("results.json"), files=files) == ["create", "delete"]


def test_what_is_finished_asks_for_nothing(watch):
    assert watch(files=[f"{FOLDER}results.json"]) == []


def test_a_network_that_is_away_for_a_while_does_not_end_it(watch, capsys):
    away = (network(False), network(False), network(True))
    assert watch(becomes("ACTIVE"), *away, writes("results.json")) == ["create", "delete"]
    assert "no network" in capsys.readouterr().err
    with pytest.raises(UserError, match="ended with exit code 1: ERROR: no network"):
        watch(fails=True)
