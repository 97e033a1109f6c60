"""What launchers would run, and running it with stand-ins for the programs that it names."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

SHELLCHECK = Path(sys.executable).with_name("shellcheck")  # the environment's, active or not
CONFIG = "--config=configs/digits.py"
AWKWARD = (
    CONFIG,
    '--config.data.dir=/a b/it\'s "quoted" $HOME $(date) `date` \\n %s #',
    "--config.init_from=two\nlines",
    '--config.optim.rate_factors=((".*bias", 2.0), (".*", 1.0))',
    "--config.model.lrn=true",
)
CLOUD = (
    *("--name=first", "--topology=v5e:4x4", "--image=us-docker.pkg.dev/p/r/i:1"),
    *("--bucket=gs://some-bucket/a folder", "--workdir=runs/first"),
)
WAITING = "--config.cluster.start_timeout=1800"
# Says what it was started with, in place of any program.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


def dry_run(launcher, *arguments):
    """What a launcher prints."""
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        code = launcher.main(["launch", *arguments, "--dry_run"])
    assert (code, error.getvalue()) == (0, ""), error.getvalue()
    return out.getvalue()


def shell(folder, text, *programs):
    """What those programs were started with by a script, in a folder of its own."""
    check_shell(text)
    stand_ins, seen = folder / "bin", folder / "seen"
    stand_ins.mkdir(exist_ok=True)
    for program in programs:
        (stand_ins / program).write_text(STAND_IN)
        (stand_ins / program).chmod(0o755)
    path = f"{stand_ins}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", text],
        env={"PATH": path, "SEEN": str(seen), "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"},
        cwd=folder,
        check=True,
    )
    return [json.loads(line) for line in seen.read_text().splitlines()]


def check_shell(text):
    """Runs shellcheck; arguments are to stay as typed, $ and all, which SC2016 doubts."""
    command = [SHELLCHECK, "--shell=bash", "--exclude=SC2016", "-"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def main_job(command, workdir):
    """The arguments of the main job behind launch.until_finished, which is checked."""
    at = command.index("--")
    assert command[at - 3 : at] == ["-m", "launch.until_finished", f"--workdir={workdir}"]
    assert command[at + 2 : at + 4] == ["-m", "inception_jax.main"]
    return command[at + 4 :]


def files(printed):
    """What a dry run writes, by name."""
    found = re.findall(r"cat > (\S+) <<'END_OF_FILE'\n(.*?)^END_OF_FILE$", printed, re.S | re.M)
    return dict(found)
