"""Writes down every batch that a run takes, a line each; run by tests.

python tests/log_batches.py LOG.jsonl MAIN'S ARGUMENTS
"""

import hashlib
import json
import sys

from inception_jax import main
from inception_jax.data import pipeline

path, *arguments = sys.argv[1:]
arguments = ["main", *arguments]
reads = {kind: getattr(pipeline, kind) for kind in ("training", "evaluation")}


def logged(kind):
    def read(source, rows, local, steps, *others):
        batches = reads[kind](source, rows, local, steps, *others)
        with open(path, "a", buffering=1) as log:
            for step, batch in zip(steps, batches, strict=True):
                row = {name: values.tolist() for name, values in batch.items() if name != "image"}
                row["image"] = [hashlib.sha256(image).hexdigest() for image in batch["image"]]
                log.write(json.dumps({"kind": kind, "step": step} | row) + "\n")
                yield batch

    return read


for kind in reads:
    setattr(pipeline, kind, logged(kind))

sys.exit(main.main(arguments))
