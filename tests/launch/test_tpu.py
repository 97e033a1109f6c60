"""Watching a queued resource, with a gcloud that remembers what it was told."""

import json
import os
import sys

import pytest
from conftest import ROOT

from inception_jax.errors import UserError
from launch import tpu

FOLDER = "gs://some-bucket/all/runs/first/"
ARGUMENTS = (
    *("--name=first", "--topology=v5e:4x4", "--image=i:1", "--bucket=gs://some-bucket/all"),
    *("--zone=z", "--spot", "--config=configs/digits.py", "--workdir=runs/first"),
)
# What it knows is in a file: resources by name, files of the bucket, what was done, whether it
# reaches anything, and whether there is such a bucket.
GCLOUD = f"""#!{sys.executable}
import json, os, sys
path = os.environ["STATE"]
state = json.load(open(path))
words = sys.argv[1:]
if words[0] == "storage":
    verb, target = words[1:3]
    if state["fails"]:
        sys.exit("ERROR: no network")
    if verb == "buckets":
        assert words[2:] == ["describe", "gs://some-bucket", "--raw", "--format=json"]
        print(json.dumps(dict(hierarchicalNamespace=dict(enabled=state["folders"]))))
        sys.exit(0)
    if verb == "ls":
        if not state["bucket"]:
            sys.exit("ERROR: (gcloud.storage.ls) gs://some-bucket not found: 404.")
        found = [name for name in state["files"] if name.startswith(target)]
        if not found:
            sys.exit("ERROR: One or more URLs matched no objects.")
        print(*found, sep=chr(10))
        sys.exit(0)
    state["files"] = [name for name in state["files"] if name != target]
else:
    verb = words[3]
    if state["fails"]:
        sys.exit("ERROR: no network")
    if state["away"]:
        state["away"] -= 1
        json.dump(state, open(path, "w"))
        sys.exit("ERROR: (gcloud.compute) 503 backend error" + chr(10) + "to begin with, log in")
    if verb == "list":
        at = "projects/p/locations/z/queuedResources/"
        found = state["resources"].items()
        why = dict(failedData=dict(error=dict(code=8, message="no quota")))
        states = [(n, dict(state=s) | (why if s == "FAILED" else {{}})) for n, s in found]
        print(json.dumps([dict(name=at + n, state=s) for n, s in states]))
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
    """Returns watch(*events, files, ...) -> what was done; an event happens between two looks."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    path = tmp_path / "state.json"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(path))

    def watch(*events, files=(), resources=(), **state):
        state = {"bucket": True, "folders": True, "fails": False, "away": 0, "done": []} | state
        state |= {"files": list(files), "resources": {"other": "ACTIVE"} | dict(resources)}
        path.write_text(json.dumps(state))
        coming = iter(events)

        def wait():
            state = json.loads(path.read_text())
            next(coming)(state)
            path.write_text(json.dumps(state))

        asked = tpu.read(["tpu", *ARGUMENTS])
        try:
            tpu.check_bucket(asked)
            tpu.watch(asked, tpu.create(asked, tmp_path / "startup.sh"), wait)
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


def test_what_was_preempted_is_asked_for_again_and_again(watch):
    taken = (becomes("ACTIVE"), becomes("SUSPENDED"), nothing)
    events = (*4 * taken, becomes("ACTIVE"), writes("results.json"))
    assert watch(*events) == [*4 * ["create", "delete"], "create", "delete"]


def test_what_fails_is_asked_for_again_a_few_times(watch, capsys):
    """With the reason, as it may be the quota or the runtime."""
    failed = (becomes("FAILED"), nothing)
    assert watch(*2 * failed, becomes("ACTIVE"), *2 * failed, writes("results.json")) == [
        *4 * ["create", "delete"],
        *("create", "delete"),
    ]
    assert "first: FAILED, as no quota\n" in capsys.readouterr().err
    with pytest.raises(UserError, match="first could not be had, 3 times in a row: see above"):
        watch(*2 * failed, becomes("FAILED"), nothing)
    assert watch.state["resources"] == {"other": "ACTIVE"}
    assert watch.state["done"] == 3 * ["create", "delete"]


def test_hosts_that_leave_nothing_are_told_once(watch, capsys):
    active = (becomes("ACTIVE"), *(tpu.PATIENCE + 5) * [nothing])
    assert watch(*active, writes("results.json")) == ["create", "delete"]
    assert capsys.readouterr().err.count(f"its hosts have left nothing in {FOLDER} yet") == 1


def test_a_bucket_that_cannot_be_seen_costs_no_chips(watch):
    with pytest.raises(UserError, match=f"cannot see what is at {FOLDER}: .*not found: 404"):
        watch(bucket=False)
    assert watch.state["done"] == []


def test_a_bucket_without_folders_costs_no_chips(watch):
    with pytest.raises(UserError, match="gs://some-bucket has no hierarchical namespace"):
        watch(folders=False)
    assert watch.state["done"] == []


def test_a_run_that_gave_up_does_not_keep_its_chips(watch):
    with pytest.raises(UserError, match=f"failed again and again, and its TPUs .* {FOLDER}gave_up"):
        watch(becomes("ACTIVE"), writes("gave_up.txt"))
    assert watch.state["resources"] == {"other": "ACTIVE"}


def test_that_an_earlier_attempt_gave_up_does_not_matter(watch):
    files = [f"{FOLDER}gave_up.txt"]
    assert watch(becomes("ACTIVE"), writes("results.json"), files=files) == ["create", "delete"]


def test_a_run_that_gave_up_while_nobody_watched_is_told(watch):
    """And its hosts, which do nothing any more, are given back."""
    with pytest.raises(UserError, match="failed again and again, and its TPUs are given back"):
        watch(files=[f"{FOLDER}gave_up.txt"], resources={"first": "ACTIVE"})
    assert watch.state["done"] == ["delete"]


def test_chips_that_cannot_be_given_back_at_once_are_tried_again(watch):
    def ends_without_network(state):
        writes("results.json")(state)
        state["away"] = 1

    events = (becomes("ACTIVE"), ends_without_network, nothing)
    assert watch(*events) == ["create", "delete"]
    with pytest.raises(UserError, match=r"may still be there .*: type gcloud compute tpus queued-"):
        watch(
            becomes("ACTIVE"), lambda s: ends_without_network(s) or s.update(away=9), *2 * [nothing]
        )


def test_what_is_finished_and_gave_up_is_finished(watch):
    files = [f"{FOLDER}gave_up.txt", f"{FOLDER}results.json"]
    assert watch(files=files, resources={"first": "ACTIVE"}) == ["delete"]


def test_what_is_finished_asks_for_nothing(watch, capsys):
    files = [f"{FOLDER}results.json"]
    assert watch(files=files) == []
    told = f"first: finished before; to go on with more, remove {FOLDER}results.json\n"
    assert capsys.readouterr().err == told
    assert watch(files=files, resources={"first": "ACTIVE"}) == ["delete"]  # nobody watched


def test_a_network_that_is_away_for_a_while_does_not_end_it(watch, capsys):
    away = (network(False), network(False), network(True))
    assert watch(becomes("ACTIVE"), *away, writes("results.json")) == ["create", "delete"]
    assert "no network" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"cannot see what is at .*: ERROR: no network"):
        watch(fails=True)
