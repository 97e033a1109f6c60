"""Sweeps: which trials there are, what is refused before the first, and what remains of each."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, newest, wait_until

from launch import sweep, tpu, trials

REAL = sys.executable
BRANCHES = f"--config={ROOT}/configs/digits_branches.py"
HEAD = "from configs import googlenet\n\ndef get_config():\n    return googlenet.get_config()\n\n"
# In place of Python: leaves results made of the seed, without training, as BEHAVE says.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, signal, sys
from inception_jax import config, init_from
workdir = pathlib.Path(sys.argv.pop().removeprefix("--workdir="))
arguments = sys.argv[2:]
assert arguments[0] == "inception_jax.main"
values = config.parse(arguments)[1]
init_from.adopt(values, config.given(arguments))
with open(os.environ["SEEN"], "a") as seen:
    seen.write(workdir.name + "\\n")
where, _, how = os.environ.get("BEHAVE", "nowhere:").partition(":")
if where in workdir.name:
    if how == "stop":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.kill(os.getppid(), signal.SIGTERM)
        signal.alarm(60)
        signal.sigwait([signal.SIGTERM])
        pathlib.Path(os.environ["SEEN"]).open("a").write("told\\n")
        sys.exit(0)
    sys.exit(int(how))
workdir.mkdir(parents=True, exist_ok=True)
results = {{"top1": 0.9 + values.seed / 100, "top5": 1.0, "loss": 0.5 * (values.seed + 1)}}
results["config"] = json.loads(values.to_json_best_effort())
(workdir / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def recipe(tmp_path):
    """Returns recipe(line of sweep()) -> --config of a file."""

    def write(line):
        path = tmp_path / "recipe.py"
        path.write_text(f"{HEAD}def sweep():\n    {line}\n" if line else HEAD)
        return f"--config={path}"

    return write


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns run(*arguments, behave) -> (exit code, trials that were started)."""
    stand_in, seen = tmp_path / "python", tmp_path / "seen"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SEEN", str(seen))

    def call(*arguments, behave="nowhere:"):
        seen.write_text("")
        monkeypatch.setenv("BEHAVE", behave)
        code = sweep.main(["sweep", *arguments, f"--workdir={tmp_path}/runs"])
        return code, seen.read_text().splitlines()

    return call


def make(config, *axes, seeds=0, arguments=()):
    return trials.make(config.removeprefix("--config="), [config, *arguments], axes, seeds)


def message(*arguments, capsys):
    """The one line that a sweep is refused with, before anything runs."""
    assert sweep.main(["sweep", *arguments]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_every_combination_is_tried_once_in_order(recipe):
    config = recipe("yield {'model.width': 0.5}; yield {'model.width': 1.0}")
    made = make(config, "model.lrn=true,false", seeds=2, arguments=["--config.seed=5"])
    assert [trial.name for trial in made] == [
        "model.width=0.5,model.lrn=true,seed=5",
        "model.width=0.5,model.lrn=true,seed=6",
        "model.width=0.5,model.lrn=false,seed=5",
        "model.width=0.5,model.lrn=false,seed=6",
        "model.width=1.0,model.lrn=true,seed=5",
        "model.width=1.0,model.lrn=true,seed=6",
        "model.width=1.0,model.lrn=false,seed=5",
        "model.width=1.0,model.lrn=false,seed=6",
    ]
    found = [
        (trial.config.model.width, trial.config.model.lrn, trial.config.seed) for trial in made
    ]
    assert found[2] == (0.5, False, 5)
    assert found[5] == (1.0, True, 6)
    assert made[2].overrides == [
        *("--config.model.width=0.5", "--config.model.lrn=false", "--config.seed=5")
    ]


def test_values_of_sweep_arrive_as_they_are(recipe):
    config = recipe(
        "yield {'model.lrn': False, 'model.dropout': None, 'optim.betas': (0.8, 0.9),"
        " 'data.dir': 'a b', 'optim.rate_factors': (('.*/bias, x', 2.0), ('.*', 1.0))}"
    )
    (trial,) = make(config)
    assert trial.config.model.lrn is False
    assert trial.config.model.dropout is None
    assert trial.config.optim.betas == (0.8, 0.9)
    assert trial.config.data.dir == "a b"
    assert trial.config.optim.rate_factors == ((".*/bias, x", 2.0), (".*", 1.0))


@pytest.mark.parametrize(
    ("axis", "field", "expected"),
    [
        ("optim.betas=(0.8,0.9),(0.9,0.99)", "betas", [(0.8, 0.9), (0.9, 0.99)]),
        ("config.optim.momentum=0.5,0.9", "momentum", [0.5, 0.9]),
        ("optim.freeze=('a,b','c'),('d',)", "freeze", [("a,b", "c"), ("d",)]),
    ],
)
def test_commas_in_brackets_do_not_separate(axis, field, expected, recipe):
    assert [trial.config.optim[field] for trial in make(recipe(""), axis)] == expected


def test_quotes_keep_commas_and_are_not_part_of_the_value(recipe):
    made = make(recipe(""), "model.branches=\"1x1,3x3\",'1x1,5x5',pool")
    assert [t.config.model.branches for t in made] == ["1x1,3x3", "1x1,5x5", "pool"]


def test_names_of_folders_are_safe_short_and_unique(recipe):
    made = make(recipe(""), "data.dir=a/b,a b,a?b,a_b,../a," + "x" * 300 + "," + "x" * 301)
    names = [trial.name for trial in made]
    assert len(set(names)) == 7
    assert all(len(name) <= 120 and not set(name) & set("/ ?*$'\"\\") for name in names)
    assert names[3] == "data.dir=a_b"  # as it is, where nothing had to be replaced


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to try: "),
        (["--set=model.lrn"], "--set=model.lrn: write FIELD=VALUE,VALUE"),
        (["--set=model.lrn="], "--set=model.lrn=: write FIELD=VALUE,VALUE"),
        (["--set=model.lrn=true,"], "--set=model.lrn=true,: write FIELD=VALUE,VALUE"),
        (["--set==true"], "--set==true: write FIELD=VALUE,VALUE"),
        (["--set=optim.betas=(0.8,0.9"], "brackets or quotes do not match in (0.8,0.9"),
        (["--set=optim.betas=0.9)"], "brackets or quotes do not match in 0.9)"),
        (["--set=data.dir='a,b"], "brackets or quotes do not match in 'a,b"),
        (["--set=model.lnr=true"], "unknown config field config.model.lnr: did you"),
        (["--set=model=true"], "config.model is a group of fields"),
        (["--set=workdir=a,b"], "unknown config field config.workdir"),
        (["--set=model.lrn=true,maybe"], "trial model.lrn=maybe: config.model.lrn is 'maybe'"),
        (["--set=batch_size=32,0"], "trial batch_size=0: config.batch_size is 0"),
        (["--set=model.branches=1x2"], "trial model.branches=1x2: config.model.branches=1x2"),
        (["--set=model.pyramid=(1,2)"], "googlenet has no such field"),
        (["--set=model.lrn=true", "--set=model.lrn=false"], "config.model.lrn is varied twice"),
        (["--set=seed=1,2", "--seeds=2"], "config.seed is varied twice"),
        (["--set=model.lrn=true", "--config.model.lrn=false"], "config.model.lrn is both"),
        (["--set=batch_size=32,32"], "trials batch_size=32 and batch_size=32 are the same"),
        (["--set=model.width=0.5,.50"], "trials model.width=0.5 and model.width=.50 are the same"),
        (["--seeds=-1"], "--seeds=-1: it must be 1 or more"),
        (["--seeds=0"], "--seeds=0: it must be 1 or more"),
        (["--seeds=many"], "many"),
        (["--seeds=2", "--config.model.lnr=true"], "unknown config field config.model.lnr"),
        (["--seeds=2", "--sed=1"], "unknown flag --sed"),
        (["--seeds=2", "--print_jobs="], "it must begin with local, tpu, gke, slurm"),
        (["--seeds=2", "--print_jobs=cloud -x"], "it must begin with local, tpu, gke, slurm"),
        (["--seeds=2", "--print_jobs=tpu 'x"], "No closing quotation"),
        (["--seeds=2", "--print_jobs=slurm --node=2"], "--print_jobs=slurm: unknown flag --node"),
        (["--seeds=2", "--print_jobs=slurm --nodes=0"], "--print_jobs=slurm: --nodes=0: it must"),
        (["--seeds=2", "--print_jobs=tpu --zone=z"], "--print_jobs=tpu: no --image given"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_before_anything_runs(
    arguments, told, recipe, tmp_path, capsys
):
    workdir = tmp_path / "runs"
    error = message(recipe(""), f"--workdir={workdir}", *arguments, capsys=capsys)
    assert told in error
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("yield 'model.lrn'", "yields 'model.lrn': it must yield dicts of fields and values"),
        ("yield {1: 2}", "yields {1: 2}: it must yield dicts of fields and values"),
        ("yield {'model.lnr': True}", "trial model.lnr=true: unknown config field"),
        ("yield {'seed': 'x'}", "trial seed=x: config.seed is 'x': it must be of type int"),
        ("return 5", "TypeError: 'int' object is not iterable"),
        ("yield 1 / 0", "recipe.py, line 7: ZeroDivisionError"),
        ("yield {'seed': 1}; yield {'seed': 1}", "trials seed=1 and seed=1 are the same"),
        ("yield from ()", "nothing to try"),
    ],
)  # fmt: skip
def test_a_mistake_in_sweep_is_told_in_one_line(line, told, recipe, tmp_path, capsys):
    assert told in message(recipe(line), f"--workdir={tmp_path}/runs", capsys=capsys)


def test_the_table_has_means_and_deviations_by_hand():
    """Deviation of 0.90, 0.92, 0.97: squares about 0.93 sum to 0.0026, over n - 1, rooted."""
    made = make(BRANCHES, seeds=3)[:6]
    results = [
        *({"top1": x, "top5": 1.0, "loss": 2.0} for x in (0.90, 0.92, 0.97)),
        {"top1": 0.5, "top5": 0.75, "loss": 1.0},
        None,
        {"top1": 0.7, "top5": 0.75, "loss": 4.0},
    ]
    assert sweep.table(made, results) == (
        "| model.branches   | runs   | top-1           | top-5           | loss            |\n"
        "| ---------------- | ------ | --------------- | --------------- | --------------- |\n"
        "| 1x1,3x3,5x5,pool | 3      | 0.9300 ± 0.0361 | 1.0000 ± 0.0000 | 2.0000 ± 0.0000 |\n"
        "| 1x1,3x3,pool     | 2 of 3 | 0.6000 ± 0.1414 | 0.7500 ± 0.0000 | 2.5000 ± 2.1213 |\n"
    )


def test_the_table_of_single_runs_has_their_numbers(recipe):
    made = make(recipe(""), "optim.freeze=('(a|b)',),()")
    result = {"top1": 0.5, "top5": 0.25, "loss": 2.0}
    assert sweep.table(made, [result, None]).splitlines() == [
        "| optim.freeze | runs   | top-1  | top-5  | loss   |",
        "| ------------ | ------ | ------ | ------ | ------ |",
        "| ('(a\\|b)',)  | 1      | 0.5000 | 0.2500 | 2.0000 |",
        "| ()           | 0 of 1 | failed | failed | failed |",
    ]


def test_the_table_shows_what_a_trial_leaves_as_it_is(recipe):
    made = make(recipe("yield {}\n    yield {'model.lrn': False, 'optim.name': 'lamb'}"))
    result = {"top1": 0.5, "top5": 0.25, "loss": 2.0}
    *_, plain, other = sweep.table(made, [result, result]).splitlines()
    assert plain.split()[1:5:2] == ["None", "sgd"]
    assert other.split()[1:5:2] == ["false", "lamb"]


def test_trials_run_one_after_another_and_only_once(run, recipe, tmp_path, capfd):
    line = recipe("yield {'model.lrn': True}; yield {'model.lrn': False}"), "--seeds=2"
    names = [f"model.lrn={lrn},seed={seed}" for lrn in ("true", "false") for seed in (0, 1)]
    assert run(*line) == (0, names)
    out, error = capfd.readouterr()
    assert error == ""
    assert out.splitlines()[:4] == [f"trial {n} of 4: {name}" for n, name in enumerate(names, 1)]
    table = (tmp_path / "runs" / "sweep.md").read_text()
    assert out.endswith(f"\n{table}")
    # by hand: seeds 0 and 1 have top-1 0.90 and 0.91, losses 0.5 and 1
    assert "| true      | 2    | 0.9050 ± 0.0071 | 1.0000 ± 0.0000 | 0.7500 ± 0.3536 |\n" in table
    assert run(*line) == (0, [])
    assert (tmp_path / "runs" / "sweep.md").read_text() == table
    assert run(*line[:1], "--seeds=3") == (0, ["model.lrn=true,seed=2", "model.lrn=false,seed=2"])


def test_a_trial_that_fails_does_not_keep_the_others(run, recipe, tmp_path, capfd):
    line = recipe(""), "--set=batch_size=8,16,32"
    code, seen = run(*line, behave="batch_size=16:3")
    assert (code, len(seen)) == (1, 3)
    assert capfd.readouterr().err == (
        "trial batch_size=16 ended with exit code 3\n"
        "error: 1 of 3 trials failed: batch_size=16; the same line tries them again\n"
    )
    assert "| 16         | 0 of 1 | failed |" in (tmp_path / "runs" / "sweep.md").read_text()
    assert run(*line) == (0, ["batch_size=16"])


def test_a_trial_that_was_stopped_by_itself_is_not_finished(run, recipe, capfd):
    """The main job ends with 0 when it is told to stop."""
    assert run(recipe(""), "--seeds=2", behave="seed=1:0")[0] == 1
    assert "error: 1 of 2 trials failed: seed=1" in capfd.readouterr().err


def test_sigterm_stops_the_trial_and_the_sweep(run, recipe, tmp_path, capfd):
    line = recipe(""), "--seeds=3"
    assert run(*line, behave="seed=1:stop") == (143, ["seed=0", "seed=1", "told"])
    assert capfd.readouterr().err == "stopped at trial 2 of 3: the same line goes on\n"
    assert not (tmp_path / "runs" / "sweep.md").exists()
    assert run(*line) == (0, ["seed=1", "seed=2"])


def test_trials_of_other_overrides_are_not_mixed_up(run, recipe, capfd):
    assert run(recipe(""), "--seeds=2")[0] == 0
    capfd.readouterr()
    assert run(recipe(""), "--seeds=2", "--config.batch_size=8") == (1, [])
    error = capfd.readouterr().err
    assert "/runs/seed=0 was run with config.batch_size=32, not 8: take another --workdir" in error


def test_how_hosts_met_is_no_other_override(run, recipe, capfd):
    """Launchers wait longer for them."""
    assert run(recipe(""), "--seeds=2", "--config.cluster.start_timeout=1800")[0] == 0
    assert run(recipe(""), "--seeds=2") == (0, [])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 1}'])
def test_results_that_are_none_are_told(text, run, recipe, tmp_path, capfd):
    path = tmp_path / "runs" / "seed=0" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert run(recipe(""), "--seeds=2") == (1, [])
    assert f"{path} cannot be read as a run's results: remove it" in capfd.readouterr().err


def test_what_comes_with_weights_is_no_other_override(run, tmp_path, capfd):
    """Results name the network of the weights, the recipe another."""
    from configs import imagenet

    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text(imagenet.get_config("vgg16").to_json_best_effort())
    line = [f"--config={ROOT}/configs/finetune.py", f"--config.init_from={weights}"]
    assert run(*line, "--set=model.dropout=0.1,0.2")[0] == 0
    assert run(*line, "--set=model.dropout=0.1,0.2") == (0, [])
    capfd.readouterr()
    assert run(*line, "--set=model.dropout=0.1,0.2", "--config.data.image_size=192") == (1, [])
    assert "config.data.image_size=224, not 192" in capfd.readouterr().err


def test_a_line_a_trial_is_printed_for_launchers(run, recipe, capfd):
    config = recipe("yield {'data.dir': \"it's a b\"}")
    options = "--nodes=2 --container='a b'"
    shared = "--config.optim.betas=(0.8, 0.9)"
    line = config, shared, f"--print_jobs=launch.slurm {options}"
    assert run(*line, "--seeds=2") == (0, [])
    out, error = capfd.readouterr()
    assert error == ""
    found = [shlex.split(text) for text in out.splitlines()]
    assert len(found) == 2
    assert run(*line, "--seeds=3") == (0, [])
    assert capfd.readouterr().out.startswith(out)  # a trial's job keeps its name
    assert len({words[5] for words in found}) == 2
    for seed, words in enumerate(found):
        assert words[:5] == ["python", "-m", "launch.slurm", "--nodes=2", "--container=a b"]
        assert re.fullmatch("--name=runs-[0-9a-f]{8}", words[5])
        expected = [config, shared, "--config.data.dir=it's a b", f"--config.seed={seed}"]
        assert words[6:-1] == expected
        assert words[-1].startswith("--workdir=")
        assert "/runs/data.dir=it_s_a_b,seed=" in words[-1]


def test_what_is_printed_is_what_the_launcher_takes(capsys):
    options = "--topology=v5e:4x4 --image=i:1 --zone=z --bucket=gs://some-bucket"
    line = ("--config=configs/digits_branches.py", "--workdir=runs/Some_sweep")
    assert sweep.main(["sweep", *line, f"--print_jobs=tpu {options}"]) == 0
    for text in capsys.readouterr().out.splitlines():
        assert tpu.main([*shlex.split(text)[2:], "--dry_run"]) == 0
        assert "some-sweep-" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["2026-11", "_"])
def test_names_of_jobs_begin_with_a_letter(folder, capsys):
    options = "--topology=v5e:4x4 --image=i:1 --zone=z --bucket=gs://some-bucket"
    line = ("--config=configs/digits_branches.py", f"--workdir=runs/{folder}")
    assert sweep.main(["sweep", *line, f"--print_jobs=tpu {options}"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert tpu.main([*shlex.split(first)[2:], "--dry_run"]) == 0


def test_what_is_finished_is_not_printed_again(run, recipe, capfd):
    assert run(recipe(""), "--seeds=1")[0] == 0
    capfd.readouterr()
    assert run(recipe(""), "--seeds=2", "--print_jobs=local") == (0, [])
    (text,) = capfd.readouterr().out.splitlines()
    assert text.endswith("/runs/seed=1")
    assert "--name" not in text  # local takes none


def test_a_dry_run_prints_the_main_jobs(run, recipe, capfd):
    config = recipe("")
    assert run(config, "--seeds=2", "--dry_run") == (0, [])
    lines = [shlex.split(text) for text in capfd.readouterr().out.splitlines()]
    assert [words[1:5] for words in lines] == [
        ["-m", "inception_jax.main", config, f"--config.seed={seed}"] for seed in (0, 1)
    ]


OPTIONS = (
    *(
        "--config=configs/digits_branches.py",
        "--config.model.width=0.0625",
        "--config.batch_size=32",
    ),
    *("--config.model.modules=3a", "--config.epochs=0.5"),
    *("--config.schedule.warmup_epochs=0", "--config.checkpoint.every_steps=10"),
)


def test_a_trial_that_outlives_its_sweep_is_waited_for(run, recipe, tmp_path, capfd):
    """As it does when the sweep alone is killed, for want of memory or by hand."""
    script = f"""
import pathlib, sys
from launch import job
from launch.processes import Processes
child = "import sys; print('at work', flush=True); sys.stdin.read()"
with job.alone(pathlib.Path({str(tmp_path / "runs")!r})) as keep, Processes([keep]) as processes:
    processes.run([[sys.executable, "-c", child]])
"""
    killed = subprocess.Popen(
        [REAL, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdout.readline() == b"at work\n"
    killed.kill()
    killed.wait()
    ending = threading.Timer(2, killed.stdin.close)
    ending.start()
    begin = time.monotonic()
    code, seen = run(recipe(""), "--seeds=2")
    assert time.monotonic() - begin >= 2
    assert (code, seen) == (0, ["seed=0", "seed=1"])
    told = f"a run is still at work in {tmp_path / 'runs'}: waiting for it\n"
    assert capfd.readouterr().err == told


def start(workdir):
    """The sweep of digits, of four trials, in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", *OPTIONS, f"--workdir={workdir}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_halfway_a_sweep_ends_with_the_same_table(tmp_path):
    whole = start(tmp_path / "whole")
    out, error = whole.communicate(timeout=600)
    assert (whole.returncode, error) == (0, "")
    table = (tmp_path / "whole" / "sweep.md").read_bytes()
    assert len(set(table.splitlines())) == 6  # trials differ, so that none stands for another

    folder = tmp_path / "killed"
    first, second = (folder / trial.name for trial in make(BRANCHES)[:2])
    killed = start(folder)
    try:
        assert wait_until(killed, lambda: newest(second) >= 10)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert not (second / "results.json").exists()
    before = (first / "results.json").stat().st_mtime_ns

    again = start(folder)
    out, error = again.communicate(timeout=600)
    assert (again.returncode, error) == (0, "")
    assert out.startswith(f"trial 2 of 4: {second.name}\ngoing on from step 10 in {second}\n")
    assert (first / "results.json").stat().st_mtime_ns == before
    assert (folder / "sweep.md").read_bytes() == table
    assert json.loads((second / "results.json").read_text())["step"] == 23
