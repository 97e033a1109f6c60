"""Random keys by purpose, so that no two uses of a run's seed ever share one."""

import enum

import jax


class Stream(enum.IntEnum):
    """What a key is for."""

    PARAMS = 0
    DROPOUT = 1
    AUGMENTATION = 2
    LIGHTING = 3
    RANDAUGMENT = 4
    PHOTOMETRIC = 5
    ERASING = 6
    MIX = 7


def key(seed: int, stream: Stream, *numbers: int | jax.Array) -> jax.Array:
    """The key of (seed, stream, numbers): a step, or an epoch and an example."""
    result = jax.random.fold_in(jax.random.key(seed), stream)
    for number in numbers:
        result = jax.random.fold_in(result, number)
    return result
