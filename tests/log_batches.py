"""Writes down every batch that a run takes, a line each; run by tests.

python tests/log_batches.py LOG.jsonl run MAIN'S ARGUMENTS
python tests/log_batches.py LOG.jsonl ADDRESS:PORT,HOSTS,NUMBER MAIN'S ARGUMENTS

The second is one of several hosts, and reads its share of the batches without training on them.
"""

import hashlib
import json
import sys

import jax

from inception_jax import config as config_lib
from inception_jax import main, sharding
from inception_jax.data import datasets, order, pipeline

path, role, *arguments = sys.argv[1:]
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

if role == "run":
    sys.exit(main.main(arguments))

address, hosts, number = role.split(",")
jax.distributed.initialize(address, int(hosts), int(number))
assert jax.process_count() == int(hosts)
_, config = config_lib.parse([a for a in arguments if not a.startswith("--workdir")])
data = datasets.load(config.data)
for _ in pipeline.training(
    data.train,
    order.training(len(data.train), config.batch_size, config.seed),
    sharding.local_rows(config.batch_size, sharding.make_mesh(config.mesh)),
    range(round(len(data.train) * config.epochs) // config.batch_size),
    config.data,
    config.seed,
):
    pass
