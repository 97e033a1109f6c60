"""Runs one config with many overrides, a trial after the other, and tabulates what came out.

python -m launch.sweep --config=configs/digits_branches.py --workdir=runs/branches
python -m launch.sweep --config=configs/digits.py --workdir=runs/lrn \\
    --set=model.lrn=true,false --seeds=3
python -m launch.sweep --config=configs/imagenet_pod.py --workdir=runs/pod --seeds=3 \\
    --print_jobs="tpu --topology=v5e:16x16 --zone=us-west4-a --image=IMAGE --bucket=gs://my-bucket"

Trials are those that sweep() of the config yields, if it has one, times the values of each --set,
times the seeds. The same line goes on where a sweep was stopped, in whatever way.
"""

import hashlib
import json
import re
import shlex
import statistics
import sys
from pathlib import Path

from absl import flags

from inception_jax import config as config_lib
from inception_jax import init_from, process, workdir
from inception_jax.errors import UserError
from launch import gke, job, local, slurm, tpu, trials
from launch.processes import STOPPED, Processes
from launch.trials import Trial

FLAGS_HELP = """\
  --config.FIELD=VALUE      of all trials
  --workdir=DIR             a folder for each trial, and the table, as sweep.md
  --set=FIELD=VALUE,VALUE   tries each; what holds commas goes in brackets or quotes. Several --set
                            try every combination
  --seeds=N                 runs each with N seeds, from config.seed on
  --print_jobs="LAUNCHER FLAGS"
                            prints a line for each trial that is not finished, which launches it by
                            local, tpu, gke or slurm, and runs nothing
"""
LAUNCHERS = {"local": local, "tpu": tpu, "gke": gke, "slurm": slurm}
COLUMNS = {"top1": "top-1", "top5": "top-5", "loss": "loss"}


@process.command(__doc__, config_lib.HELP.partition("  --config.FIELD")[0] + FLAGS_HELP)
def main(argv: list[str]) -> int:
    """Runs the command line."""
    asked = job.read(argv, _define)
    own = asked.flags
    if own["seeds"].present and own.seeds < 1:
        raise UserError(f"--seeds={own.seeds}: it must be 1 or more")
    process.quiet()
    each = trials.make(asked.source, asked.arguments, own["set"].value or [], own.seeds)
    folder = Path(asked.workdir)
    if own.print_jobs is None and not own.dry_run:
        return run(asked, each, folder)
    waiting = [trial for trial in each if _results(asked, trial, folder) is None]
    if own.print_jobs is not None:
        found = lines(asked, waiting)
    else:
        found = [job.shown(_command(asked, trial, folder)) for trial in waiting]
    for line in found:
        print(line)
    return 0


def run(asked: job.Job, each: list[Trial], folder: Path) -> int:
    """Runs the trials that are not finished, and writes the table.

    Returns:
      The exit code: 0, or STOPPED.

    Raises:
      UserError: some of them failed.
    """
    with workdir.hold(folder), job.alone(folder) as keep, Processes([keep]) as processes:
        waiting = [trial.name for trial in each if _results(asked, trial, folder) is None]
        for number, trial in enumerate(each, 1):
            if trial.name not in waiting:
                continue
            print(f"trial {number} of {len(each)}: {trial.name}", flush=True)
            (code,) = processes.run([_command(asked, trial, folder)])
            if processes.stopped:
                job.say(f"stopped at trial {number} of {len(each)}: the same line goes on")
                return STOPPED
            if code:
                job.say(f"trial {trial.name} ended with exit code {code}")
        results = [_results(asked, trial, folder) for trial in each]
        text = table(each, results)
        with workdir.writing(folder / "sweep.md"):
            (folder / "sweep.md").write_text(text)
    print(f"\n{text}", end="")
    failed = [trial.name for trial, found in zip(each, results, strict=True) if found is None]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(each)} trials failed: {', '.join(failed)}; the same line tries"
            " them again"
        )
    return 0


def lines(asked: job.Job, waiting: list[Trial]) -> list[str]:
    """A command line for each trial that is waiting, which its launcher takes."""
    try:
        launcher, *options = shlex.split(asked.flags.print_jobs) or [""]
    except ValueError as error:
        raise UserError(f"--print_jobs={asked.flags.print_jobs}: {error}") from None
    launcher = launcher.removeprefix("launch.")
    if launcher not in LAUNCHERS:
        raise UserError(f"--print_jobs={launcher}: it must begin with {', '.join(LAUNCHERS)}")
    named = re.sub(r"[^a-z0-9]+", "-", Path(asked.workdir).name.lower()).strip("-")[:26]
    named = named if named[:1].isalpha() else f"sweep-{named}".strip("-")
    found = []
    for trial in waiting:
        digest = hashlib.sha256(trial.name.encode()).hexdigest()[:8]
        name = [] if launcher == "local" else [f"--name={named}-{digest}"]
        at = f"--workdir={Path(asked.workdir) / trial.name}"
        arguments = [*options, *name, *asked.arguments, *trial.overrides, at]
        try:
            LAUNCHERS[launcher].read([launcher, *arguments])
        except UserError as error:
            raise UserError(f"--print_jobs={launcher}: {error}") from None
        found.append(job.shown(["python", "-m", f"launch.{launcher}", *arguments]))
    return found


def table(each: list[Trial], results: list[dict | None]) -> str:
    """The trials and what came out, a row for all seeds of one set of values, in Markdown.

    Where there are several seeds, means and standard deviations (of a sample, n - 1).
    """
    rows: dict[tuple[str, ...], list[dict]] = {}
    fields = list(dict.fromkeys(f for trial in each for f in trial.fields if f != "seed"))
    asked: dict[tuple[str, ...], int] = {}
    for trial, result in zip(each, results, strict=True):
        key = tuple(trial.value(field) for field in fields)
        asked[key] = asked.get(key, 0) + 1
        rows.setdefault(key, []).extend([result] if result else [])
    lines = [[*fields, "runs", *COLUMNS.values()]]
    for key, found in rows.items():
        count = f"{len(found)}" if len(found) == asked[key] else f"{len(found)} of {asked[key]}"
        lines.append([*key, count, *(_mean([r[name] for r in found]) for name in COLUMNS)])
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _mean(values):
    if not values:
        return "failed"
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def _command(asked, trial, folder):
    main_job = asked._replace(arguments=[*asked.arguments, *trial.overrides])
    return main_job.command(folder / trial.name, sys.executable)


def _results(asked, trial, folder):
    """What a finished trial has come to, or None."""
    path = folder / trial.name / "results.json"
    try:
        results = json.loads(path.read_text())
        stored = config_lib.BEFORE | dict(config_lib.flatten(results["config"]))
        results = {name: float(results[name]) for name in COLUMNS}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise UserError(
            f"{path} cannot be read as a run's results: remove it, then go on"
        ) from None
    given = dict(config_lib.flatten(json.loads(trial.config.to_json_best_effort())))
    if trial.config.init_from:  # what came with the weights is not in the recipe
        typed = config_lib.given(["", *asked.arguments, *trial.overrides])
        given = {k: v for k, v in given.items() if k in typed or k not in init_from.ADOPTED}
    for name, value in given.items():
        if name.startswith("cluster."):  # how hosts meet, which launchers adapt
            continue
        if value != stored.get(name):
            raise UserError(
                f"{folder / trial.name} was run with config.{name}={stored.get(name)}, not"
                f" {value}: take another --workdir, or set it back"
            )
    return results


def _define(values):
    flags.DEFINE_multi_string("set", None, "", flag_values=values)
    flags.DEFINE_integer("seeds", 0, "", flag_values=values)
    flags.DEFINE_string("print_jobs", None, "", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
