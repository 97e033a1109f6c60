"""Sweeps: which trials there are, what is told, the table, and going on after a kill."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from inception_jax import config as config_lib
from inception_jax.errors import UserError
from launch import sweep, trials
from launch.trials import Trial

CONFIG = "--config=configs/digits.py"
SMALL = (
    *(CONFIG, "--config.model.width=0.0625", "--config.model.modules=3a,4a,5b"),
    *(
        "--config.epochs=1",
        "--config.schedule.warmup_epochs=0",
        "--config.checkpoint.every_steps=5",
    ),
)


def make(*axes, seeds=0, source="configs/digits.py", arguments=()):
    return trials.make(source, [f"--config={source}", *arguments], axes, seeds)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_combination_is_tried():
    found = make("model.lrn=true,false", "optim.betas=(0.9,0.99),(0.9,0.95)", seeds=2)
    assert len({trial.name for trial in found}) == len(found) == 8
    assert found[1].fields == {"model.lrn": "true", "optim.betas": "(0.9,0.99)", "seed": "1"}
    assert (found[1].config.model.lrn, found[1].config.optim.betas) == (True, (0.9, 0.99))
    assert [trial.config.seed for trial in found] == [0, 1] * 4
    assert make("config.model.lrn=true", seeds=1)[0].name == "model.lrn=true,seed=0"


def test_seeds_go_on_from_the_config_s():
    found = make(seeds=3, arguments=["--config.epochs=2"])
    assert [trial.config.seed for trial in found] == [0, 1, 2]
    assert {trial.config.epochs for trial in found} == {2.0}


def test_names_are_safe_and_unique():
    def name(value):
        return Trial({"data.dir": value}, None).name

    assert name("plain") == "data.dir=plain"
    assert len({name("a/b"), name("a b"), name("a_b")}) == 3
    assert "/" not in name("a/b")
    assert len(name("x" * 1000)) <= 120
    assert name("x" * 1000) != name("x" * 1001)


def test_a_config_yields_trials(tmp_path):
    path = tmp_path / "with_sweep.py"
    path.write_text(
        "from configs.digits import get_config\n"
        "def sweep():\n"
        "    yield {'model.lrn': True, 'optim.betas': (0.5, 0.9)}\n"
        "    yield {'model.module': 'naive'}\n"
    )
    first, second, *_ = found = make(source=str(path), seeds=1)
    assert len(found) == 2
    assert (first.config.model.lrn, first.config.optim.betas) == (True, (0.5, 0.9))
    assert second.config.model.module == "naive"
    for yields in ("yield 3", "yield {1: 2}"):
        path.write_text(f"from configs.digits import get_config\ndef sweep():\n    {yields}\n")
        with pytest.raises(UserError, match=r"it must yield dicts of fields and values"):
            make(source=str(path))


@pytest.mark.parametrize(
    ("axes", "seeds", "told"),
    [
        (["model.lrn"], 0, "--set=model.lrn: write FIELD=VALUE,VALUE"),
        (["model.lrn="], 0, "--set=model.lrn=: write"),
        (["=true"], 0, "--set==true: write"),
        (["model.lrn=true,,false"], 0, "write FIELD=VALUE,VALUE"),
        (["optim.betas=(0.9,0.99"], 0, "a bracket or quote is not closed"),
        (["model.lnr=1"], 0, "trial model.lnr=1: unknown config field .* did you mean"),
        (["model.lrn=true,maybe"], 0, "trial model.lrn=maybe: .*must be of type bool"),
        (["epochs=30,-1"], 0, "trial epochs=-1: config.epochs"),
        (["model.lrn=true,True"], 0, "are the same: leave one out"),
        (["model.lrn=true", "model.lrn=false"], 0, "config.model.lrn is varied twice"),
        (["seed=1,2"], 2, "config.seed is varied twice"),
        (["batch_size=32,64"], 0, "both varied and set by --config.batch_size"),
        ([], 0, "nothing to try: configs/digits.py has no sweep()"),
    ],
)
def test_mistakes_are_found_before_the_first_trial(axes, seeds, told):
    with pytest.raises(UserError, match=told):
        make(*axes, seeds=seeds, arguments=["--config.batch_size=64"])


def test_the_table_has_means_and_deviations_of_a_sample():
    each = [
        Trial({"model.lrn": v, "seed": str(s)}, None) for v in ("true", "false") for s in (0, 1)
    ]
    top1 = [0.5, 0.7, 0.25, None]
    results = [t and {"top1": t, "top5": 1.0, "loss": 2 * t} for t in top1]
    head, rule, first, second = sweep.table(each, results).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, first, second)]
    assert cells[0] == ["model.lrn", "runs", "top-1", "top-5", "loss"]
    assert cells[1] == ["true", "2", "0.6000 ± 0.1414", "1.0000 ± 0.0000", "1.2000 ± 0.2828"]
    assert statistics.stdev([0.5, 0.7]) == pytest.approx(0.1414, abs=1e-4)
    assert cells[2] == ["false", "1 of 2", "0.2500", "1.0000", "0.5000"]
    assert set(rule) == set("|- ")


def test_jobs_are_printed_a_line_a_trial(capsys, tmp_path):
    arguments = (CONFIG, "--config.data.dir=a 'b' $c", "--set=model.lrn=true,false")
    jobs = "--print_jobs=tpu --zone=z --bucket='gs://b/a folder'"
    assert sweep.main(["sweep", *arguments, f"--workdir={tmp_path}/My runs", jobs]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    for number, (line, lrn) in enumerate(zip(out.splitlines(), ("true", "false"), strict=True), 1):
        assert shlex.split(line) == [
            *("python", "-m", "launch.tpu", "--zone=z", "--bucket=gs://b/a folder"),
            *(f"--name=my-runs-{number}", *arguments[:2], f"--config.model.lrn={lrn}"),
            f"--workdir={tmp_path}/My runs/model.lrn={lrn}",
        ]


def test_what_was_run_otherwise_is_not_mixed_in(capsys, tmp_path):
    (tmp_path / "seed=0").mkdir()
    _, config = config_lib.parse(["sweep", CONFIG, "--config.epochs=3"])
    results = {
        "top1": 0.5,
        "top5": 1,
        "loss": 1,
        "config": json.loads(config.to_json_best_effort()),
    }
    (tmp_path / "seed=0/results.json").write_text(json.dumps(results))
    arguments = (CONFIG, "--seeds=1", f"--workdir={tmp_path}")
    assert sweep.main(["sweep", *arguments]) == 1
    assert "was run with config.epochs=3.0, not 30.0" in capsys.readouterr().err
    assert sweep.main(["sweep", *arguments, "--config.epochs=3"]) == 0
    assert (tmp_path / "sweep.md").read_text().count("0.5000") == 1


@pytest.mark.slow
def test_killed_halfway_it_ends_with_the_same_table(tmp_path):
    """Four trials of digits; SIGKILL to all as soon as the second has a checkpoint."""

    def start(workdir):
        axes = ("--set=model.batch_norm=true,false", "--seeds=2")
        return subprocess.Popen(
            [sys.executable, "-m", "launch.sweep", *SMALL, *axes, f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    whole = start(tmp_path / "whole")
    told, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, told
    killed = start(tmp_path / "killed")
    second = tmp_path / "killed/model.batch_norm=true,seed=1/checkpoints"
    while killed.poll() is None and not any(p.name.isdecimal() for p in second.glob("*")):
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (second.parents[1] / "model.batch_norm=true,seed=0/results.json").exists()
    assert not (second.parent / "results.json").exists()
    again = start(tmp_path / "killed")
    told, _ = again.communicate(timeout=600)
    assert again.returncode == 0, told
    assert "trial 1 of 4" not in told
    assert "trial 2 of 4: model.batch_norm=true,seed=1" in told
    tables = [(tmp_path / name / "sweep.md").read_bytes() for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    assert tables[0].count(b"\n") == 4
