"""Running a job again until it is finished, with real processes in its place."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

# Does in its N-th run what its N-th argument says; without any more, ends.
JOB = """
import pathlib, signal, sys, time
folder, *acts = sys.argv[1:]
folder = pathlib.Path(folder)
runs = folder / "runs"
number = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (number + 1))
for act in acts[number].split("+"):
    match act.split(":"):
        case ["save", step]:
            (folder / "checkpoints" / step).mkdir(parents=True)
        case ["fail", code]:
            sys.exit(int(code))
        case ["finish"]:
            (folder / "results.json").write_text("{}")
        case ["wait"]:
            def stop(*_):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a second one stops at once
                print("saving", flush=True)
                while not (folder / "may_end").exists():
                    time.sleep(0.05)
                (folder / "saved").touch()
                sys.exit(0)
            signal.signal(signal.SIGTERM, stop)
            print("waiting", flush=True)
            time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    """Returns start(*acts) -> the process that runs the job again and again."""
    started = []

    def start(*acts, flags=("--seen_within=0",)):
        (tmp_path / "job.py").write_text(JOB)
        command = (sys.executable, str(tmp_path / "job.py"), str(tmp_path), *acts)
        until = (sys.executable, "-m", "launch.until_finished", f"--workdir={tmp_path}")
        started.append(
            subprocess.Popen(
                [*until, *flags, "--", *command],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def runs(tmp_path):
    return len((tmp_path / "runs").read_text())


def test_it_is_run_until_its_results_are_there(start, tmp_path):
    """Failures that get further do not count, nor does an end without results."""
    acts = ("save:1+fail:1", "save:2+fail:1", "save:3+fail:3", "save:4", "save:5+finish")
    process = start(*acts)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, runs(tmp_path)) == (0, 5)
    told = error.splitlines()
    assert len(told) == 4
    assert "ended with exit code 3: it goes on" in told[2]
    assert told[3].endswith("stopped: it goes on")


def test_it_gives_up_where_trying_again_does_not_help(start, tmp_path):
    process = start("fail:1", "save:1+fail:1", *["fail:7"] * 9)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, runs(tmp_path)) == (3, 5)
    last = error.splitlines()[-1]
    why = "ended with exit code 7, 3 times in a row without a new checkpoint"
    assert last.startswith(f"error: the run in {tmp_path} {why}")
    assert (tmp_path / "gave_up.txt").read_text() == f"{why}\n"
    process = start(*["fail:1"] * 5, "finish")  # which begins anew
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (tmp_path / "gave_up.txt").exists()


def test_results_of_a_run_that_failed_are_not_the_end(start, tmp_path):
    process = start("save:1+finish+fail:1", "save:2+finish")
    process.communicate(timeout=60)
    assert (process.returncode, runs(tmp_path)) == (0, 2)


def test_a_signal_is_passed_on_once_and_told_by_the_exit_code(start, tmp_path):
    """However often it comes, as where a cluster and its batch script both send it."""
    process = start("wait", "finish")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # for it to be passed on, which would be the mistake
    (tmp_path / "may_end").touch()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "saved").exists()
    assert runs(tmp_path) == 1


# A gcloud whose buckets are folders.
GCLOUD = """
import os, pathlib, shutil, sys
verb, *paths = [p.replace("gs:/", os.environ["BUCKETS"]) for p in sys.argv[2:] if p[:2] != "--"]
match verb:
    case _ if "AWAY" in os.environ:
        sys.exit("ERROR: the network is away")
    case "cat" | "ls" if not os.path.exists(paths[0]):
        sys.exit("ERROR: The following URLs matched no objects or files")
    case "cat":
        print(pathlib.Path(paths[0]).read_text(), end="")
    case "ls":
        print("\\n".join(f"{path}/" for path in pathlib.Path(paths[0]).iterdir()))
    case "rsync":
        if "--delete-unmatched-destination-objects" in sys.argv:
            shutil.rmtree(paths[1], ignore_errors=True)
        shutil.copytree(*paths, dirs_exist_ok=True)
"""


@pytest.fixture
def mirrored(tmp_path, monkeypatch):
    """Returns mirrored(here, there) -> the finished process, of a run that writes its results.

    The arguments say which checkpoints and which config its folder and the copy begin with.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gcloud").write_text(f"#!{sys.executable}\n{GCLOUD}")
    (programs / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("BUCKETS", str(tmp_path))
    code = "import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'results.json').write_text('{}')"

    def run(here, there):
        workdir, copied = tmp_path / "first", tmp_path / "some-bucket" / "first"
        workdir.mkdir(exist_ok=True)
        (workdir / "slurm.log").write_text("a launcher's, and open")
        for folder, (config, steps) in ((workdir, here), (copied, there)):
            for step in steps:
                (folder / "checkpoints" / step).mkdir(parents=True)
            if config:
                (folder / "config.json").write_text(config)
        return subprocess.run(
            [
                *(sys.executable, "-m", "launch.until_finished", f"--workdir={workdir}"),
                *("--bucket=gs://some-bucket/first", "--", sys.executable, "-c", code, workdir),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def steps(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    ("here", "there", "fetched"),
    [
        (("", ()), ("{}", ("1", "9")), {"1", "9"}),
        (("{}", ("9",)), ("{}", ("9", "10")), {"9", "10"}),
        (("{}", ("9", "10")), ("{}", ("8", "9")), None),
        (("{}", ("1",)), ("", ()), None),
    ],
    ids=["not here", "older here", "newer here", "not there"],
)
def test_a_copy_that_is_ahead_is_fetched_and_what_came_out_is_copied(
    mirrored, tmp_path, here, there, fetched
):
    finished = mirrored(here, there)
    workdir, copied = tmp_path / "first", tmp_path / "some-bucket" / "first"
    assert finished.returncode == 0, finished.stderr
    told = f"fetched {workdir} from gs://some-bucket/first\n" if fetched else ""
    assert finished.stderr == told
    assert steps(workdir) == (fetched or set(here[1]))
    assert (workdir / "slurm.log").exists()
    assert steps(copied) == steps(workdir)
    assert (copied / "results.json").read_text() == "{}"


def test_a_bucket_that_cannot_be_seen_is_not_taken_for_empty(mirrored, tmp_path, monkeypatch):
    monkeypatch.setenv("AWAY", "yes")
    finished = mirrored(("", ()), ("{}", ("9",)))
    assert finished.returncode == 1
    told = "error: cannot see what is at gs://some-bucket/first/config.json: ERROR: the network is"
    assert finished.stderr.startswith(told)
    assert not (tmp_path / "first" / "results.json").exists()


def test_what_was_fetched_in_part_is_fetched_again(mirrored, tmp_path):
    """As else the part would be taken for all there is, and copied over the whole."""
    part = tmp_path / "some-bucket" / "first" / "checkpoints" / "9"
    part.mkdir(parents=True)
    (part / "data").write_text("whole")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / ".fetching").touch()
    assert mirrored(("{}", ("9",)), ("{}", ())).returncode == 0
    assert (tmp_path / "first" / "checkpoints" / "9" / "data").read_text() == "whole"
    assert (part / "data").read_text() == "whole"
    assert not (tmp_path / "first" / ".fetching").exists()


def test_a_copy_of_another_run_is_left_alone(mirrored, tmp_path):
    finished = mirrored(("{}", ("9",)), ('{"seed": 1}', ("3",)))
    assert finished.returncode == 1
    told = f"error: gs://some-bucket/first is a copy of another run than {tmp_path}/first: take"
    assert finished.stderr.startswith(told)
    assert finished.stderr.count("\n") == 1
    assert steps(tmp_path / "some-bucket" / "first") == {"3"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--workdir=x",), "no command given: write it behind --"),
        (("--workdir=x", "--"), "no command given"),
        (("--", "true"), "--workdir"),
        (("--workdir=x", "--bukket=y", "--", "true"), "unknown flag --bukket=y"),
        (("--workdir=x", "--bucket=y", "--", "true"), "--bucket=y is no bucket"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, told):
    finished = subprocess.run(
        [sys.executable, "-m", "launch.until_finished", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert told in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
