"""One training step and one evaluation step, as pure functions of state and batch.

A batch is a dict: `image` uint8 BHWC, `label` int32 B, `epoch` and `example` int32 B (which image
this is, for what is random about it) and, in evaluation, `valid` bool B (False for padding). Where
images are mixed it has `other_label` int32 B and `share` float32 B, which is that of `label`, too.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from inception_jax import average, nonfinite
from inception_jax.models import layers
from inception_jax.rng import Stream, key

Batch = dict[str, jax.Array]
NOTHING = {"params": False, "batch_stats": False}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "batch_stats", "opt_state", "average"],
    meta_fields=[],
)
@dataclasses.dataclass
class TrainState:
    """Everything that training changes; with the config it determines the rest of a run."""

    step: jax.Array  # int32 scalar, updates made
    params: Any
    batch_stats: Any  # running mean and variance of batch norm, or empty
    opt_state: Any
    average: Any = dataclasses.field(default_factory=dict)  # from average.start, or empty

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied to in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """What it is applied to in evaluation."""
        return self.average["mean"] if self.average else self.variables


def init_variables(model, image_size: int, seed: int) -> dict[str, Any]:
    """Draws the first parameters, a pure function of its arguments: {params, batch_stats}."""
    images_BHWC = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    keys = {"params": key(seed, Stream.PARAMS), "dropout": key(seed, Stream.DROPOUT)}
    variables = model.init(keys, images_BHWC, train=True)
    params = variables["params"]
    # flax makes running statistics in float32 and updates them in the parameters' dtype
    wide = jnp.result_type(*jax.tree.leaves(params))
    batch_stats = jax.tree.map(lambda x: x.astype(wide), variables.get("batch_stats", {}))
    return {"params": params, "batch_stats": batch_stats}


def init_state(variables: dict[str, Any], optimizer, averaged: bool = False) -> TrainState:
    """The state before the first update.

    Args:
      variables: from init_variables.
      optimizer: an optax transformation.
      averaged: whether there is to be an average.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=optimizer.init(variables["params"]),
        average=average.start(variables) if averaged else {},
        **variables,
    )


def make_train_step(
    model,
    optimizer,
    preprocess: Callable[..., jax.Array],
    *,
    schedule,
    seed: int,
    auxiliary_weight: float,
    label_smoothing: float,
    accumulation: int,
    mix: Callable[[Batch], Batch] | None = None,
    update_average: average.Update | None = None,
    frozen: dict[str, Any] = NOTHING,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes train_step(state, batch) -> (state, metrics).

    The loss is the mean cross entropy of the main classifier plus auxiliary_weight times that of
    each auxiliary head; label_smoothing is the share of every label that is spread evenly over all
    K classes (Szegedy et al. 2016, section 7). With accumulation > 1 the gradient is the mean over
    that many parts of the batch, computed one after another; batch statistics are then each part's
    own. mix, from device.make_mix, is of the whole batch, before it is split; cross entropies are
    then means of those with both labels, weighted by their shares. update_average, from
    average.make_update, follows each update. What is frozen, as told by optim.frozen, keeps its
    very bits. With skip_nonfinite a step whose loss or gradient norm is not finite changes no more
    than the step's number and the rate's, and the average, which goes on with the same variables.

    Metrics: loss, main_loss (both with smoothing) and top1 (of mixed images, the label with the
    greater share), all of the training batch before the update; grad_norm, before clipping;
    param_norm, after the update; rate.
    """

    def loss_fn(params, batch_stats, batch, dropout_key):
        images_BHWC = preprocess(batch, train=True)
        params = jax.tree.map(
            lambda still, p: jax.lax.stop_gradient(p) if still else p, frozen["params"], params
        )
        with layers.keeping_statistics(frozen["batch_stats"]):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images_BHWC,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )

        def cross_entropy(logits_BK):
            losses_B = _smoothed_cross_entropy(logits_BK, batch["label"], label_smoothing)
            if mix:
                share_B, others_B = batch["share"], batch["other_label"]
                other_losses_B = _smoothed_cross_entropy(logits_BK, others_B, label_smoothing)
                losses_B = share_B * losses_B + (1 - share_B) * other_losses_B
            return jnp.mean(losses_B)

        main_loss = cross_entropy(logits.main_BK)
        auxiliary_loss = sum(map(cross_entropy, logits.auxiliary))
        loss = main_loss + auxiliary_weight * auxiliary_loss
        labels_B = batch["label"]
        if mix:
            labels_B = jnp.where(batch["share"] < 0.5, batch["other_label"], labels_B)
        top1 = jnp.mean(jnp.argmax(logits.main_BK, -1) == labels_B, dtype=main_loss.dtype)
        metrics = {"loss": loss, "main_loss": main_loss, "top1": top1}
        return loss, (updated.get("batch_stats", {}), metrics)

    grad_fn = jax.grad(loss_fn, has_aux=True)

    def gradients(state, batch):
        """Returns (gradients, batch_stats, metrics) of the whole batch."""
        if mix:
            batch = mix(batch)
        if accumulation == 1:
            dropout_key = key(seed, Stream.DROPOUT, state.step)
            grads, (batch_stats, metrics) = grad_fn(
                state.params, state.batch_stats, batch, dropout_key
            )
            return grads, batch_stats, metrics

        def part(carry, inputs):
            total, batch_stats = carry
            part_batch, number = inputs
            dropout_key = key(seed, Stream.DROPOUT, state.step, number)
            grads, (batch_stats, metrics) = grad_fn(
                state.params, batch_stats, part_batch, dropout_key
            )
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        # Part p takes every accumulation-th row from p on, so that each device's rows stay its own.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1), batch
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, batch_stats), metrics = jax.lax.scan(
            part, (zeros, state.batch_stats), (parts, jnp.arange(accumulation))
        )
        grads = jax.tree.map(lambda g: g / accumulation, total)
        return grads, batch_stats, jax.tree.map(jnp.mean, metrics)

    def train_step(state: TrainState, batch: Batch):
        grads, batch_stats, metrics = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(
            lambda still, old, new: old if still else new,
            frozen["params"],
            state.params,
            optax.apply_updates(state.params, updates),
        )
        metrics["grad_norm"] = optax.tree.norm(grads)
        if skip_nonfinite:
            params, batch_stats, opt_state = nonfinite.unless(
                metrics,
                (params, batch_stats, opt_state),
                (state.params, state.batch_stats, state.opt_state),
            )
        metrics |= {"param_norm": optax.tree.norm(params), "rate": schedule(state.step)}
        state = TrainState(state.step + 1, params, batch_stats, opt_state, state.average)
        if update_average:
            mean = state.average["mean"]
            state.average = update_average(state.average, state.step, state.variables)
            state.average["mean"] = jax.tree.map(
                # where nothing changes, as the sum with 0 is not -0.0; a parameter that was frozen
                # on a resume has an average that is on its way
                lambda still, old, new, now: jnp.where(old == now, old, new) if still else new,
                frozen,
                mean,
                state.average["mean"],
                state.variables,
            )
        return state, metrics

    return train_step


def make_eval_step(
    model, preprocess: Callable[..., jax.Array]
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """Makes eval_step(state, batch) -> sums over the batch's valid images, of the average if any.

    Sums: top1 and top5 (int32, images right; top5 is of K classes where K < 5), loss (cross
    entropy), examples (int32).
    """

    def eval_step(state: TrainState, batch: Batch):
        logits = model.apply(
            state.evaluated,
            preprocess(batch, train=False),
            train=False,
        )
        logits_BK, labels_B, valid_B = logits.main_BK, batch["label"], batch["valid"]
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, labels_B)
        _, best_B5 = jax.lax.top_k(logits_BK, min(5, logits_BK.shape[-1]))
        right_B5 = best_B5 == labels_B[:, None]
        return {
            "top1": jnp.sum(right_B5[:, 0] & valid_B),
            "top5": jnp.sum(right_B5.any(axis=1) & valid_B),
            "loss": jnp.sum(jnp.where(valid_B, losses_B, 0)),
            "examples": jnp.sum(valid_B),
        }

    return eval_step


def _smoothed_cross_entropy(logits_BK, labels_B, smoothing):
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, labels_B)
    if not smoothing:
        return losses_B
    uniform_B = -jnp.mean(jax.nn.log_softmax(logits_BK), axis=-1)
    return (1 - smoothing) * losses_B + smoothing * uniform_B
