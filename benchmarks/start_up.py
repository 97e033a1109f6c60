"""From the start of the main job to its first finished step, with nothing compiled yet and again.

    python -m benchmarks.start_up --config=configs/digits.py

Every round has a new folder for what is compiled, config.compile_cache: the first run fills it, the
second finds it filled. Each run is a process of its own and is ended after its step; the ratio is
what counts.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inception_jax import config as config_lib
from inception_jax import process, validate

ROUNDS = 5


@process.command(__doc__, config_lib.HELP)
def main(argv: list[str]) -> None:
    """Prints each round, the medians and their ratio."""
    _, config = config_lib.parse(argv)
    validate.check(config)
    seconds = []
    print("seconds to the first step  compiling  again  ratio")
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            seconds.append([seconds_to_first_step(argv[1:], cache) for _ in range(2)])
        report(f"round {number + 1}", *seconds[-1])
    report(f"medians of {ROUNDS}", *map(statistics.median, zip(*seconds, strict=True)))


def report(name: str, first: float, second: float) -> None:
    """Prints a line."""
    print(f"{name:25}  {first:9.1f}  {second:5.1f}  {second / first:5.2f}", flush=True)


def seconds_to_first_step(arguments: list[str], cache: str) -> float:
    """Starts the main job in a new workdir and ends it when its log has a row.

    Args:
      arguments: of the command line.
      cache: for config.compile_cache.
    """
    with tempfile.TemporaryDirectory() as workdir:
        fields = {"log_every_steps": 1, "compile_cache": cache}
        overrides = [f"--config.{name}={value}" for name, value in fields.items()]
        command = [sys.executable, "-m", "inception_jax.main", *arguments, *overrides]
        begun = time.time()
        run = subprocess.Popen([*command, f"--workdir={workdir}"], stdout=subprocess.DEVNULL)
        try:
            log = Path(workdir) / "metrics.jsonl"
            while not (log.exists() and log.read_text().endswith("\n")):
                if run.poll() is not None:
                    sys.exit(run.returncode)  # it has said why
                time.sleep(0.05)
            return json.loads(log.read_text().splitlines()[0])["time"] - begun
        finally:
            run.kill()
            run.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
