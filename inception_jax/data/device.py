"""What happens to pixels on the device, inside the jitted step: mirror, then normalisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from inception_jax.rng import Stream, key


def make_preprocess(config: ConfigDict, seed: int) -> Callable[..., jax.Array]:
    """Makes preprocess(batch, train) -> float32 images, (uint8 - mean) / std per channel.

    What is random about an image depends on (seed, epoch, example) only.

    Args:
      config: `config.data`.
      seed: of the run.
    """

    def preprocess(batch: dict[str, jax.Array], train: bool) -> jax.Array:
        images_BHWC = batch["image"]
        if train and config.mirror:
            keys_B = jax.vmap(lambda *which: key(seed, Stream.AUGMENTATION, *which))(
                batch["epoch"], batch["example"]
            )
            flip_B = jax.vmap(jax.random.bernoulli)(keys_B)
            images_BHWC = jnp.where(
                flip_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC
            )
        mean, std = jnp.asarray(config.mean, jnp.float32), jnp.asarray(config.std, jnp.float32)
        return (images_BHWC.astype(jnp.float32) - mean) / std

    return preprocess
