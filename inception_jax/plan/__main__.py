"""Whether a config fits a pod that is not here, how fast it can go and how long it would take.

python -m inception_jax.plan --config=configs/imagenet_pod.py --topology=v5e:16x16
python -m inception_jax.plan --config=configs/digits.py --topology=cpu:8

The training step is compiled for the pod, which takes some minutes and needs no TPU, but the TPU
compiler: make libtpu. Several slices: --config.mesh.slices=N, each of them such a topology.
"""

import json
import signal
import sys
from pathlib import Path

from absl import flags

from inception_jax import config as config_lib
from inception_jax import init_from, process, validate
from inception_jax.errors import UserError
from inception_jax.plan import topology

FORMATS = ("table", "json")
FLAGS_HELP = """\
  --topology=NAME           v5e:4x4 and so on (a wrong one lists all), or cpu:N for N virtual
                            devices of this CPU
  --find_batch              plan for the largest batch that fits, which takes some compilations
  --format=table|json       what to print; table if not given
"""


@process.command(__doc__, config_lib.HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    values, config = config_lib.parse(argv, _define)
    init_from.adopt(config, config_lib.given(argv))
    validate.check(config)
    if values.format not in FORMATS:
        raise UserError(f"--format is {values.format!r}; known: {', '.join(FORMATS)}")
    if not values.topology:
        raise UserError("no topology given: add --topology=v5e:4x4, or cpu:8 for this CPU")
    kind, _ = topology.parse(values.topology)
    if values.find_batch and kind == "cpu":
        raise UserError("--find_batch needs chips of known memory: take a --topology of TPUs")
    topology.prepare(values.topology)
    process.quiet()

    import jax

    from inception_jax.plan import planner, render

    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    path, _, argument = config_lib.source_of(argv).partition(":")
    name = "-".join(filter(None, [Path(path).stem, argument]))
    devices = topology.devices(values.topology, max(config.mesh.slices, 1))
    # Nothing has to be saved: Python would wait for the compiler, libtpu print where it was.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    report = planner.plan(name, config, values.topology, devices, values.find_batch)
    if values.format == "table":
        print(render.text(report), end="")
    else:
        print(json.dumps(report.as_json(), indent=1))


def _define(values):
    flags.DEFINE_string("topology", "", "", flag_values=values)
    flags.DEFINE_boolean("find_batch", False, "", flag_values=values)
    flags.DEFINE_string("format", "table", "", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
