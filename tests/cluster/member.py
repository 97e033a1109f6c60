"""One of several processes, whose worker does as it is told instead of training; run by tests.

python tests/cluster/member.py PORT COUNT INDEX DEED [NAME=VALUE ...]

DEED is what the worker does when all are there:
  work      waits until a file of that name stands in the current folder, and ends well
  fail      ends with a UserError
  collapse  ends with the error that jax raises when another process is gone
  abort     prints a native-looking trace and aborts, as jax does when it learns of that itself
  wait      ends well when SIGTERM comes
Where NAME is start or dead it is a timeout, else what the processes have to agree on.
"""

import os
import signal
import sys
import time

from inception_jax.cluster import Cluster, find, meeting
from inception_jax.cluster.worker import started_as_worker
from inception_jax.errors import UserError

port, count, index, deed, *settings = sys.argv[1:]
settings = dict(setting.split("=") for setting in settings)


def work(worker):
    print(f"{index} works, {os.getpid()}", flush=True)
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    worker._tell("joined", True)
    while not os.path.exists(deed):
        if terminated and deed == "wait":
            return
        time.sleep(0.02)
    if deed == "fail":
        raise UserError("the disk is gone")
    if deed == "collapse":
        import jax  # takes long, and supervisors do without it

        raise jax.errors.JaxRuntimeError("Connection closed by peer")
    if deed == "abort":
        os.write(2, b"*** SIGABRT received ***\n")
        os.abort()


if worker := started_as_worker():
    with worker.reporting():
        work(worker)
    sys.exit(0)
place = find(f"localhost:{port}", int(count), int(index), timeout=5)
assert isinstance(place, Cluster)
timeouts = float(settings.pop("start", 60)), float(settings.pop("dead", 60))
role = meeting.First if place.index == 0 else meeting.Other
try:
    sys.exit(role(place, settings, *timeouts).supervise())
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
