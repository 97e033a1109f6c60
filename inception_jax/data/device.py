"""What happens to pixels on the device, in the jitted step: mirror, lighting, normalisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from inception_jax.rng import Stream, key

# Of the colours of ImageNet's training images in [0, 1]: the principal components, a column each,
# with R, G and B as rows, and their eigenvalues. facebook/fb.resnet.torch, datasets/imagenet.lua.
COMPONENTS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
EIGENVALUES = (0.2175, 0.0188, 0.0045)


def make_preprocess(config: ConfigDict, seed: int) -> Callable[..., jax.Array]:
    """Makes preprocess(batch, train) -> float32 images, (uint8 - mean) / std per channel.

    What is random about an image depends on (seed, epoch, example) only.

    Args:
      config: `config.data`.
      seed: of the run.
    """

    def preprocess(batch: dict[str, jax.Array], train: bool) -> jax.Array:
        def keys_B(stream):
            return jax.vmap(lambda *which: key(seed, stream, *which))(
                batch["epoch"], batch["example"]
            )

        images_BHWC = batch["image"]
        if train and config.mirror:
            flip_B = jax.vmap(jax.random.bernoulli)(keys_B(Stream.AUGMENTATION))
            images_BHWC = jnp.where(
                flip_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC
            )
        images_BHWC = images_BHWC.astype(jnp.float32)
        if train and config.lighting:
            normal_B3 = jax.vmap(lambda k: jax.random.normal(k, (3,), jnp.float32))(
                keys_B(Stream.LIGHTING)
            )
            images_BHWC += lighting(config.lighting * normal_B3)[:, None, None]
        mean, std = jnp.asarray(config.mean, jnp.float32), jnp.asarray(config.std, jnp.float32)
        return (images_BHWC - mean) / std

    return preprocess


def lighting(alpha_B3: jax.Array) -> jax.Array:
    """What to add to each image's RGB in [0, 255] (Krizhevsky et al. 2012, section 4.1).

    Args:
      alpha_B3: how much of each component, as a multiple of its eigenvalue.
    """
    scaled = 255 * jnp.asarray(COMPONENTS, jnp.float32) * jnp.asarray(EIGENVALUES, jnp.float32)
    # no matrix product, which accelerators would round to fewer bits
    return jnp.sum(alpha_B3[:, None] * scaled, axis=-1)
