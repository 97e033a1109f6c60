"""Running a job again until it is finished, with real processes in its place."""

import os
import signal
import subprocess
import sys

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
    assert (process.returncode, runs(tmp_path)) == (1, 5)
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


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_is_passed_on_and_told_by_the_exit_code(start, tmp_path, number):
    process = start("wait", "finish")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "saved").exists()
    assert runs(tmp_path) == 1


def test_the_folder_is_fetched_and_copied(start, tmp_path, monkeypatch):
    """By a gcloud that copies folders: first from the bucket, at the end what came out."""
    programs, bucket = tmp_path / "bin", tmp_path / "bucket"
    for folder in (programs, bucket / "checkpoints" / "1"):
        folder.mkdir(parents=True)
    (bucket / "config.json").write_text("{}")
    gcloud = programs / "gcloud"
    gcloud.write_text(
        f"""#!{sys.executable}
import shutil, sys
paths = [a.replace("gs://some-bucket/runs", {str(bucket)!r}) for a in sys.argv]
if paths[2] == "ls":
    print(paths[3])
else:
    shutil.copytree(*paths[-2:], dirs_exist_ok=True)
"""
    )
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    workdir = tmp_path / "workdir"
    code = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); assert (p / 'config.json').exists();"
    )
    code += "(p / 'results.json').write_text('{}')"
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "launch.until_finished", f"--workdir={workdir}"),
            *("--bucket=gs://some-bucket/runs", "--", sys.executable, "-c", code, workdir),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == f"fetched {workdir} from gs://some-bucket/runs\n"
    assert (bucket / "results.json").read_text() == "{}"
    assert (workdir / "checkpoints" / "1").is_dir()


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
