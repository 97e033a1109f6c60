"""The loop: train, evaluate, save, stop and go on; everything it calls stands in its own module."""

import contextlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax import (
    __version__,
    compile_cache,
    evaluate,
    hosts,
    nonfinite,
    process,
    program,
    resume,
    retry,
    sharding,
    transfer,
    workdir,
)
from inception_jax.checkpoint import Checkpoints
from inception_jax.clock import Clock
from inception_jax.console import Console
from inception_jax.data import datasets, order, pipeline
from inception_jax.data.repair import listed
from inception_jax.errors import DataError, UserError
from inception_jax.metrics import Mark, MetricsLog, NoLog
from inception_jax.profile import Profile

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def train(
    config: ConfigDict, folder: Path, stop: Callable[[], str | None], console: Console
) -> tuple[int, dict | None]:
    """Runs `config` to its end, from wherever the last run in the same folder got to.

    Args:
      config: checked by validate.check.
      folder: the workdir.
      stop: returns the name of the signal that asks the run to stop, or None.
      console: to say things on.

    Returns:
      The step that was reached and saved, and what results.json holds, or None if the run was
      stopped before its end.

    Raises:
      UserError: whatever the user can mend.
    """
    compile_cache.use(config.compile_cache)
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    data = datasets.load(config.data)
    mesh = sharding.make_mesh(config.mesh)
    prog = program.make(config, mesh, num_examples=len(data.train), num_classes=data.num_classes)
    run = Run(config, folder, data, prog, stop, console)
    with workdir.hold(folder) if hosts.first() else contextlib.nullcontext(), run.closing:
        hosts.check_alike(folder, resume.numbered(run.facts()))
        return run.run()


class Run:
    """One process's part in a run; the counters go into every checkpoint."""

    def __init__(self, config, folder, data, prog, stop, console):
        self.config, self.folder, self.data, self.prog = config, folder, data, prog
        self.stop, self.console = stop, console
        self.checkpoints = Checkpoints(folder, config.checkpoint.keep, console.line)
        self.log = MetricsLog(folder) if hosts.first() else NoLog()
        self.closing = contextlib.ExitStack()
        self.closing.push(self._finish_save)
        self.profile = Profile(config.profile, folder / "profile", prog.total_steps, console.line)
        self.closing.callback(self.profile.close)
        self.config_json = json.loads(config.to_json_best_effort())
        self.given = self._given()
        self.results = folder / "results.json"
        self.state = None
        # examples that cannot be read and why, by epoch and index, until the epoch's end
        self.skipped: dict[int, dict[int, str]] = {}
        self.skipped_in_evaluation = 0
        self.nonfinite = 0  # training steps that were left out, in a row until now
        self.evaluation: dict = {}  # the newest one
        self.best: dict = {}  # the one with the highest top-1
        self.train_seconds = 0.0  # without evaluation and saving
        self.earlier_seconds = 0.0  # wall time of earlier starts

    def run(self) -> tuple[int, dict | None]:
        step = self._resume()
        if self.prog.mesh.size > 1:
            self.console.line(sharding.told(self.prog.state, self.prog.mesh))
        total = self.prog.total_steps
        if step == total and self._evaluated(step):
            return step, self._finish(step, self.earlier_seconds)
        if hosts.first():  # it says that a run is finished
            retry.again(lambda: self.results.unlink(missing_ok=True))
        stopped = bool(self.stop())
        with self.console.progress(step, total, f"step {step}/{total}", "compiling"):
            if not stopped and self._evaluation_due(step) and not self._evaluated(step):
                stopped = not self._evaluate(step)
            if step < total and not stopped:
                step = self._train_from(step)
        self.checkpoints.finish(lambda: self._save(step))
        if step < total or not self._evaluated(step):
            return step, None
        return step, self._finish(step, self._wall_seconds())

    def _finish_save(self, failure, *_):
        """A save under way finishes even when the run fails, so that what it holds is not lost.

        Of several processes none could finish it alone: where the others are gone, all is told now.
        """
        lost = failure is not None and issubclass(failure, jax.errors.JaxRuntimeError)
        if not (lost and jax.process_count() > 1):
            self.checkpoints.wait()

    def _finish(self, step, wall_seconds):
        results = self._results(step, wall_seconds)
        if hosts.first() and not self.results.exists():
            workdir.write_json(self.results, results)
        self.console.summary(results, self.folder)
        return results

    def _given(self):
        """Arrays that a new run starts from; before anything is written, as they may not fit."""
        if not self.config.init_from or hosts.of_first(self.checkpoints.steps()):
            return {}
        found, damaged = transfer.newest(self.config.init_from)
        given, changes = transfer.read(found, self.prog.state.variables, self.data.num_classes)
        for line in (*damaged, *changes):
            self.console.line(line)
        return given

    def _resume(self):
        found, damaged = self.checkpoints.agree_on_newest()
        if found is None:
            if hosts.first() and self.results.exists():
                raise UserError(
                    f"a run was finished in {self.folder}, and its checkpoints are gone: take"
                    " another --workdir, or remove the folder"
                )
            self.checkpoints.clean({})
            warning = self.log.open(None)
            self.console.line(f"new run in {self.folder}")
            self.state = hosts.compiled(self.prog.init, self.given)(self.given)
            self.given = {}
            step = 0
        else:
            step, meta = found.step, found.meta
            differences = resume.compare(meta, self.config, self.facts(), self.folder)
            if step > self.prog.total_steps:
                raise UserError(
                    f"the run in {self.folder} is at step {step}, past the {self.prog.total_steps}"
                    f" of config.epochs={self.config.epochs}: raise it, or take another --workdir"
                )
            self.state = self.checkpoints.restore(found, self.prog.state)
            for line in self.checkpoints.clean(damaged):
                self.console.line(line)
            self.evaluation, self.best = meta["evaluation"], meta["best"]
            if hosts.first():  # it had them of all
                self.skipped = _by_number(meta.get("skipped", {}))
            self.nonfinite = meta.get("nonfinite", 0)
            self.train_seconds = meta["train_seconds"]
            self.earlier_seconds = meta["wall_seconds"]
            warning = self.log.open(Mark(*meta["metrics_mark"]))
            if step < self.prog.total_steps:
                self.console.line(f"going on from step {step} in {self.folder}")
            else:
                self.console.line(f"finished at step {step} in {self.folder}")
                self.config_json = meta["config"]  # what it was trained with
            for line in differences:
                self.console.line(line)
        self.closing.callback(self.log.close)
        if warning:
            self.console.line(warning)
        if hosts.first():
            workdir.write_json(self.folder / "config.json", self.config_json)
        return step

    def _train_from(self, step):
        """Trains until the end or a signal; returns the step reached, which is saved.

        Raises:
          DataError: an image that is due cannot be read; the step reached is saved.
        """
        config, prog, begun = self.config, self.prog, step
        train_steps = {}  # by size of images, each compiled when it is first due
        batches = pipeline.training(
            self.data.train,
            order.training(len(self.data.train), config.batch_size, config.seed),
            sharding.local_rows(config.batch_size, prog.mesh),
            range(step, prog.total_steps),
            config.data,
            config.seed,
        )
        failure: list[DataError] = []
        ahead = sharding.place_ahead(_until_failure(batches, failure), self._place)
        clock = Clock(config.batch_size)
        late = None  # the step before this one, whose metrics the device may still be computing
        batches = clock.waiting_for(ahead)
        for batch in self.profile.around(batches, step, lambda: self.state, clock):
            size = batch["image"].shape[1]
            if size not in train_steps:
                if late:
                    self._record(*late, clock)
                    late = None
                with clock.paused():
                    train_steps[size] = hosts.compiled(
                        prog.train_step, prog.state, prog.train_batch[size]
                    )
            self.state, metrics = train_steps[size](self.state, batch)
            step += 1
            self._tell_skipped(step)
            if late:
                self._record(*late, clock)
            late = (step, metrics)
            self.checkpoints.check()
            pause = self._evaluation_due(step) or step % config.checkpoint.every_steps == 0
            if not pause and not self.stop():
                continue
            self._record(*late, clock)
            late = None
            self.train_seconds += clock.stop()
            if self._evaluation_due(step) and not self.stop():
                self._evaluate(step)
            self._save(step)
            if self.stop():
                break
            clock.start()
        if failure:
            if late:
                self._record(*late, clock)
            if step > begun and jax.process_count() == 1:  # the others wait for their next step
                self._save(step)
                self.checkpoints.finish(lambda: self._save(step))
            raise failure[0]
        return step

    def _place(self, batch):
        for epoch, due, example in zip(*map(batch.get, ("epoch", "due", "example")), strict=True):
            if due != example:
                told = self.data.train.told(int(due))
                self.skipped.setdefault(int(epoch), {})[int(due)] = told
        placed = {name: rows for name, rows in batch.items() if name != "due"}
        return sharding.place_batch(placed, self.prog.mesh)

    def _tell_skipped(self, step):
        """Tells and logs at the end of an epoch what was left out of it."""
        total = self.prog.total_steps
        ended = step * self.config.batch_size // len(self.data.train)  # epochs
        before = (step - 1) * self.config.batch_size // len(self.data.train)
        if self.config.data.unreadable == "error" or (ended == before and step < total):
            return
        skipped = self._skipped_by_all()
        for epoch in sorted(skipped):
            if step < total and epoch >= ended:
                continue
            told = [text for _, text in sorted(skipped[epoch].items())]
            self.skipped.pop(epoch, None)
            row = {"kind": "skipped", "step": step, "epoch": epoch + 1, "count": len(told)}
            self.log.append(row)
            self.console.line(f"epoch {epoch + 1}: {len(told)} unreadable, skipped: {listed(told)}")

    def _skipped_by_all(self):
        """What all processes have skipped, by epoch and index; a copy."""
        merged: dict[int, dict[int, str]] = {}
        for skipped in hosts.gather(self.skipped):
            for epoch, told in _by_number(skipped).items():
                merged.setdefault(epoch, {}).update(told)
        return merged

    def _record(self, step, metrics, clock):
        """Checks and logs the metrics of one step; waits until the device has them."""
        with clock.waiting_for_device():
            metrics = jax.device_get(metrics)
        row = {name: value.item() for name, value in metrics.items()}
        clock.tick()
        if self._left_out(step, row):
            return
        self._check_finite(step, row["rate"], row, ("loss", "grad_norm", "param_norm"))
        if step % self.config.log_every_steps == 0:
            row |= clock.lap()
            left = (self.prog.total_steps - step) * self.config.batch_size
            self.log.append({"kind": "train", "step": step, "epoch": self._epoch(step)} | row)
            row["seconds_left"] = left / row["images_per_second"]
            self.console.update(step, self.prog.total_steps, row)

    def _left_out(self, step, row):
        """Whether a step was left out because it is not finite; counts, logs and tells it."""
        found, most = nonfinite.found(row), self.config.optim.skip_nonfinite
        self.nonfinite = self.nonfinite + 1 if found else 0
        if not 0 < self.nonfinite <= most:
            return False
        at = {"kind": "nonfinite", "step": step, "epoch": self._epoch(step)}
        self.log.append(at | found | {"in_a_row": self.nonfinite})
        self.console.line(
            f"step {step}: {nonfinite.WORDS[found['what']]} became {found['value']}: left out"
            f" ({self.nonfinite} in a row, at most {most})"
        )
        return True

    def _check_finite(self, step, rate, row, names):
        for name in names:
            if not math.isfinite(row[name]):
                self.checkpoints.wait()
                saved = self.checkpoints.steps()[-1:]
                kept = f"checkpoint {saved[0]} is good" if saved else "no checkpoint was saved yet"
                raise UserError(
                    f"{row.get('kind', 'training')} {name} became {row[name]} at step {step} (rate"
                    f" {rate:.6g}); {kept}. Lower config.schedule.rate or lengthen"
                    " config.schedule.warmup_epochs"
                )

    def _evaluation_due(self, step):
        return step > 0 and (
            step % self.config.eval.every_steps == 0 or step == self.prog.total_steps
        )

    def _evaluated(self, step):
        return self.evaluation.get("step") == step

    def _evaluate(self, step):
        """Evaluates, logs and remembers; returns False if a signal came in between."""
        try:
            result = evaluate.at_every_size(
                self.prog, self.state, self.data.eval, self.config.data, self.stop
            )
        except evaluate.Stopped:
            return False
        row = {"kind": "eval", "step": step, "epoch": self._epoch(step)} | result
        losses = [name for name in row if name.startswith("loss")]
        self._check_finite(step, float(self.prog.schedule(step - 1)), row, losses)
        self.log.append(row)
        self.console.evaluation(row)
        skipped = len(self.data.eval) - result["examples"]
        if skipped > self.skipped_in_evaluation:
            self.skipped_in_evaluation = skipped
            self.console.line(evaluate.left_out(self.data.eval))
        self.evaluation = row
        if not self.best or row["top1"] > self.best["top1"]:
            self.best = {"step": step, "top1": row["top1"]}
        return True

    def _save(self, step):
        meta = {
            "step": step,
            "config": self.config_json,
            **self.facts(),
            "evaluation": self.evaluation,
            "best": self.best,
            "skipped": self._skipped_by_all(),
            "nonfinite": self.nonfinite,
            "train_seconds": self.train_seconds,
            "wall_seconds": self._wall_seconds(),
            "metrics_mark": self.log.flush(),
        }
        self.checkpoints.save(step, self.state, meta, self.best.get("step"))

    def _results(self, step, wall_seconds):
        return {
            "step": step,
            "epoch": self._epoch(step),
            **{k: v for k, v in self.evaluation.items() if k not in ("kind", "step", "epoch")},
            "best": self.best,
            "parameters": sum(x.size for x in jax.tree.leaves(self.state.params)),
            "images_per_second": step * self.config.batch_size / self.train_seconds,
            "wall_seconds": wall_seconds,
            **self._class_names(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "versions": {"inception_jax": __version__, "python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in LIBRARIES},
            "config": self.config_json,
        }

    def facts(self) -> dict[str, Any]:
        """What must not change on a resume, nor differ between hosts."""
        facts = {"num_classes": self.data.num_classes, "num_examples": len(self.data.train)}
        return facts | self._class_names()

    def _class_names(self):
        names = self.data.class_names
        return {} if names is None else {"class_names": list(names)}

    def _epoch(self, step):
        return float(step / self.prog.steps_per_epoch)

    def _wall_seconds(self):
        return self.earlier_seconds + time.monotonic() - process.STARTED


def _by_number(skipped):
    """Skipped examples by epoch and index, which JSON has as text."""
    return {
        int(epoch): {int(index): text for index, text in told.items()}
        for epoch, told in skipped.items()
    }


def _until_failure(batches, failure):
    """Yields batches; an error of the data ends them, and is put into the list."""
    try:
        yield from batches
    except DataError as error:
        failure.append(error)
