"""Evaluation counts every image once, whatever the batch: against plain NumPy."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import step
from inception_jax.data import order
from inception_jax.evaluate import evaluate

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (10, 8)).astype(np.float32)  # 10 images, 8 classes
RANKS = np.array([0, 0, 0, 0, 1, 4, 4, 5, 5, 7])  # how many classes are better than the label
LABELS = np.take_along_axis((-LOGITS).argsort(1), RANKS[:, None], 1)[:, 0]
STATE = step.TrainState(step=0, params=LOGITS, batch_stats={}, opt_state=())


class Table:
    """A network whose parameters are its logits: image i, a number, has row i."""

    def apply(self, variables, images, train):
        assert not train
        return SimpleNamespace(main_BK=jnp.asarray(variables["params"])[images])


def batches(batch_size, examples=10):
    rows = order.evaluation(examples, batch_size)
    for number in range(-(-examples // batch_size)):
        here = rows(number)
        yield {"image": here.example, "label": LABELS[here.example], "valid": here.valid}


def run(batches, examples=10):
    eval_step = step.make_eval_step(Table(), lambda batch, train: batch["image"])
    return evaluate(eval_step, STATE, batches, examples)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_the_result_is_that_of_all_images_whatever_the_batch(batch_size):
    logits = LOGITS.astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(10), LABELS]
    result = run(batches(batch_size))
    assert result.keys() == {"top1", "top5", "loss", "examples"}
    assert (result["top1"], result["top5"], result["examples"]) == (0.4, 0.7, 10)
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_sums_are_added_over_batches_before_they_are_divided():
    sums = [(3, 4, 2.5, 4), (1, 1, 0.25, 1)]  # a mean of the batches' shares would be 0.875
    names = ("top1", "top5", "loss", "examples")

    def eval_step(state, batch):
        assert state is STATE
        return {name: np.array(value) for name, value in zip(names, batch, strict=True)}

    expected = {"top1": 0.8, "top5": 1.0, "loss": 0.55, "examples": 5}
    assert evaluate(eval_step, STATE, sums, 5) == expected


@pytest.mark.parametrize("skip", [0, 2])
def test_an_image_missed_or_counted_twice_is_an_error(skip):
    whole = list(batches(4))
    with pytest.raises(RuntimeError, match="images of 10"):
        run(whole[:skip] + whole[skip + 1 :])
    with pytest.raises(RuntimeError, match="images of 10"):
        run([*whole, whole[skip]])
    with pytest.raises(RuntimeError, match="counted 0 images of 10"):
        run([])
