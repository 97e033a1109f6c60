"""Writes down every batch that a run takes, a line each; run by tests.

python tests/log_batches.py LOG.jsonl MAIN'S ARGUMENTS
"""

import hashlib
import json
import os
import sys

from inception_jax import main
from inception_jax.cluster.worker import WORKER

path, *arguments = sys.argv[1:]
arguments = ["main", *arguments]


def logged(read, kind):
    """Batches as read returns them, each of which is written down."""

    def read_and_log(source, rows, local, steps, *others):
        batches = read(source, rows, local, steps, *others)
        with open(path, "a", buffering=1) as log:
            for step, batch in zip(steps, batches, strict=True):
                row = {name: values.tolist() for name, values in batch.items() if name != "image"}
                row["image"] = [hashlib.sha256(image).hexdigest() for image in batch["image"]]
                log.write(json.dumps({"kind": kind, "step": step} | row) + "\n")
                yield batch

    return read_and_log


several = any(argument.startswith("--coordinator_address") for argument in arguments)
if WORKER in os.environ or not several:  # a supervisor takes no batches, and starts in a moment
    from inception_jax.data import pipeline

    for kind in ("training", "evaluation"):
        setattr(pipeline, kind, logged(getattr(pipeline, kind), kind))

sys.exit(main.main(arguments))
