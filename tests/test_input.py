"""What comes from the files to training: images that nobody can read, kills, and several hosts."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from conftest import ROOT, free_port, newest, rows, stop, wait_until
from miniature_imagenet import make

EPOCHS, STEPS_AN_EPOCH, BATCH = 4, 3, 8
PHOTOGRAPHS = STEPS_AN_EPOCH * BATCH - 13  # besides one of each kind, and two that TFDS knows
REASONS = {
    "cut": "image file is truncated (",
    "empty": "zero bytes)",
    "gigantic": "more than 178,956,970 pixels)",
    "text": "not an image)",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """The main job's arguments, and by split what every example is, in the order of the set."""
    folder = tmp_path_factory.mktemp("dirty")
    made = make(folder / "tars", train=PHOTOGRAPHS, val=10, dirty=True)
    flags = (f"--manual_dir={folder}/tars", f"--data_dir={folder}/sets")
    command = [sys.executable, "-m", "inception_jax.data.prepare", "imagenet", *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    as_stored = {"image": tfds.decode.SkipDecoding()}
    examples = {
        split: [
            made[split][example["file_name"].decode()]
            for example in tfds.data_source(
                "imagenet2012", split=split, data_dir=folder / "sets", decoders=as_stored
            )
        ]
        for split in ("train", "validation")
    }
    assert len(examples["train"]) == STEPS_AN_EPOCH * BATCH
    arguments = (
        *("--config=configs/imagenet.py", f"--config.data.dir={folder}/sets"),
        *("--config.model.width=0.0625", f"--config.epochs={EPOCHS}", "--config.log_every_steps=1"),
        *(f"--config.batch_size={BATCH}", f"--config.eval.batch_size={BATCH}"),
        # a few modules do, as what is at stake is what comes before them
        *("--config.model.modules=3a,4a,5a", "--config.model.auxiliary_heads=False"),
        *("--config.schedule.every_epochs=1", "--config.checkpoint.every_steps=5"),
    )
    return arguments, examples


def start(*command):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Returns exit code, output and errors of a process."""
    try:
        out, error = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        stop(process)
        raise
    return process.returncode, out, error


def logged(path, kind="training"):
    lines = map(json.loads, path.read_text().splitlines())
    return [line for line in lines if line.pop("kind") == kind]


@pytest.fixture(scope="module")
def whole(dirty, tmp_path_factory):
    """The folder of a run that skipped what it could not read, its log and its output."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "batches.jsonl"
    skip = ("--config.data.unreadable=skip", f"--workdir={folder}/run")
    code, out, error = finish(start("tests/log_batches.py", log, *dirty[0], *skip))
    assert (code, error) == (0, "")
    return folder / "run", log, out


def unreadable(examples):
    return {index: made for index, made in enumerate(examples) if made.state == "unreadable"}


def assert_told(names, split, examples):
    """Names and reasons of all that cannot be read, and of nothing else."""
    bad = unreadable(examples)
    told = names.split(f", {split} example ")
    assert len(told) == len(bad)
    for text, (index, made) in zip(told, sorted(bad.items()), strict=True):
        assert text.removeprefix(f"{split} example ").startswith(f"{index} ({REASONS[made.kind]}")


def test_what_preparation_found_is_refused_at_once(dirty, tmp_path):
    arguments, examples = dirty
    command = ("-m", "inception_jax.main", *arguments, f"--workdir={tmp_path}/run")
    code, out, error = finish(start(*command))
    assert (code, out) == (1, "")
    assert not (tmp_path / "run").exists()
    [line] = error.splitlines()
    count = sum(len(unreadable(examples[split])) for split in examples)
    assert line.startswith(f"error: data set imagenet2012 has {count} images that cannot be read")
    assert "unreadable.txt: n0" in line
    assert "leave them out with --config.data.unreadable=skip" in line


def test_an_image_that_cannot_be_read_ends_a_run_in_one_line_that_names_it(dirty, tmp_path):
    """As in a set whose preparation did not look."""
    arguments, examples = dirty
    sets = next(a.partition("=")[2] for a in arguments if a.startswith("--config.data.dir="))
    shutil.copytree(sets, tmp_path / "sets")
    [report] = (tmp_path / "sets").rglob("unreadable.txt")
    report.unlink()
    folder = tmp_path / "run"
    options = (*arguments, f"--config.data.dir={tmp_path}/sets", f"--workdir={folder}")
    code, out, error = finish(start("-m", "inception_jax.main", *options))
    assert code == 1, error
    assert out == f"new run in {folder}\n"
    [line] = error.splitlines()
    named, _, rest = line.partition(" cannot be read: ")
    made = examples["train"][int(named.removeprefix("error: train example "))]
    assert made.state == "unreadable"
    assert f"{rest})".startswith(REASONS[made.kind].removesuffix(")"))
    assert rest.endswith("leave it out with --config.data.unreadable=skip")


def test_each_epoch_tells_in_one_line_what_it_left_out_and_evaluation_once(dirty, whole):
    _, examples = dirty
    lines = [line for line in whole[2].splitlines() if "unreadable" in line]
    for epoch, line in enumerate(lines[:EPOCHS], 1):
        names = line.removeprefix(f"epoch {epoch}: 4 unreadable, skipped: ")
        assert_told(names, "train", examples["train"])
    found = [row for row in rows(whole[0]) if row["kind"] == "skipped"]
    assert [(row["epoch"], row["count"]) for row in found] == [(n + 1, 4) for n in range(EPOCHS)]
    [line] = lines[EPOCHS:]
    names = line.removeprefix("evaluation: 2 unreadable, left out: ")
    assert_told(names, "validation", examples["validation"])


def test_in_place_of_what_cannot_be_read_comes_the_next_that_can(dirty, whole):
    examples = dirty[1]["train"]
    batches = logged(whole[1])
    assert [batch["step"] for batch in batches] == list(range(EPOCHS * STEPS_AN_EPOCH))
    seen = {epoch: [] for epoch in range(EPOCHS)}
    for batch in batches:
        columns = (batch[name] for name in ("epoch", "due", "example", "label"))
        for epoch, due, example, label in zip(*columns, strict=True):
            seen[epoch].append(due)
            while examples[due].state == "unreadable":
                due = (due + 1) % len(examples)  # noqa: PLW2901
            assert (example, label) == (due, examples[due].label)
    assert all(sorted(due) == list(range(len(examples))) for due in seen.values())
    images = [image for batch in batches for image in batch["image"]]
    # 20 can be read, at a place of its own in each epoch
    assert len(set(images)) == EPOCHS * 20


def test_every_validation_image_that_can_be_read_is_evaluated_once(dirty, whole):
    readable = [made.label for made in dirty[1]["validation"] if made.state != "unreadable"]
    results = json.loads((whole[0] / "results.json").read_text())
    assert (results["examples"], len(readable)) == (11, 11)
    found = [
        (label, image)
        for batch in logged(whole[1], "evaluation")
        for label, image, valid in zip(batch["label"], batch["image"], batch["valid"], strict=True)
        if valid
    ]
    assert [label for label, _ in found] == readable
    assert len({image for _, image in found}) == 11


def test_an_evaluation_alone_tells_what_it_left_out_as_the_run_did(whole):
    code, out, error = finish(start("-m", "inception_jax.evaluate", whole[0], "--format=json"))
    assert code == 0, error
    assert json.loads(out)["examples"] == 11
    assert error.startswith("evaluation: 2 unreadable, left out: ")
    assert error in whole[2]


def test_a_run_killed_within_an_epoch_goes_on_with_the_very_images_of_one_that_was_not(
    dirty, whole, tmp_path
):
    log, again, folder = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "run"
    options = (*dirty[0], "--config.data.unreadable=skip", f"--workdir={folder}")
    process = start("tests/log_batches.py", log, *options)
    assert wait_until(process, lambda: newest(folder))
    process.kill()
    finish(process)
    saved = newest(folder)
    assert saved in (5, 10)
    code, _, error = finish(start("tests/log_batches.py", again, *options))
    assert (code, error) == (0, "")
    expected = logged(whole[1])
    seen = logged(log)
    assert len(seen) >= saved
    assert seen == expected[: len(seen)]
    assert logged(again) == expected[saved:]
    assert rows(folder) == rows(whole[0])


def test_two_hosts_read_together_the_batches_of_one_and_tell_the_same(dirty, whole, tmp_path):
    port, folder = free_port(), tmp_path / "run"
    options = (*dirty[0], "--config.data.unreadable=skip", f"--workdir={folder}")
    place = (f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id")
    logs = [tmp_path / f"host{number}.jsonl" for number in range(2)]
    hosts = [
        start("tests/log_batches.py", log, *options, *place, number)
        for number, log in enumerate(logs)
    ]
    (code, out, error), other = map(finish, hosts)
    assert (code, error) == (0, "")
    assert other == (0, "", "")
    joined = [
        {name: first[name] if name == "step" else first[name] + second[name] for name in first}
        for first, second in zip(*map(logged, logs), strict=True)
    ]
    assert joined == logged(whole[1])
    skipped = [[line for line in o.splitlines() if "unreadable" in line] for o in (out, whole[2])]
    assert skipped[0] == skipped[1]
    found, expected = ([r for r in rows(f) if r["kind"] == "skipped"] for f in (folder, whole[0]))
    assert found == expected
    assert json.loads((folder / "results.json").read_text())["examples"] == 11


def test_the_shares_of_time_that_training_waits_and_works_are_logged(whole):
    found = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    names = ("data_wait", "device_wait", "host")
    shares = [[row[name] for name in names] for row in found if row["kind"] == "train"]
    assert len(shares) == EPOCHS * STEPS_AN_EPOCH
    assert all(0 <= share <= 1 for row in shares for share in row)
    assert all(sum(row) == pytest.approx(1, abs=1e-9) for row in shares)
    assert all(map(any, zip(*shares, strict=True)))
