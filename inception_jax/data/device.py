"""What happens to pixels on the device, in the jitted step, in this order:

  mirror        a half of the images
  RandAugment   on uint8, whose arithmetic its operations have: randaugment.py
  colours       brightness, contrast, saturation and hue, in random order: photometric.py
  lighting      not clipped
  erasing       after all that would change the noise: erasing.py
  mixing        of finished images, as in the papers: mix.py
  normalisation (pixel - mean) / std, which has the same result before mixing

The first five concern each image alone, and happen where the batch has been split into the parts
of gradient accumulation, so that only a part's images are floats at a time. Partners for mixing are
of the whole batch, so with it the images of the whole batch are made floats first.

What is random about an image depends on (seed, epoch, example) only; its partner is that of the
order of examples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from inception_jax.data import erasing, mix, photometric, randaugment
from inception_jax.rng import Stream, key

Batch = dict[str, jax.Array]


def make_preprocess(config: ConfigDict, seed: int) -> Callable[..., jax.Array]:
    """Makes preprocess(batch, train) -> float32 images, (pixel - mean) / std per channel.

    Args:
      config: `config.data`.
      seed: of the run.
    """
    distort = make_distort(config, seed)

    def preprocess(batch: Batch, train: bool) -> jax.Array:
        # what has been mixed has been distorted before
        images_BHWC = distort(batch) if train and "share" not in batch else batch["image"]
        mean, std = jnp.asarray(config.mean, jnp.float32), jnp.asarray(config.std, jnp.float32)
        return (images_BHWC.astype(jnp.float32) - mean) / std

    return preprocess


def make_mix(config: ConfigDict, seed: int) -> Callable[[Batch], Batch] | None:
    """Makes mix(batch) -> batch for whole global batches, with what mix.mix adds; None if it's off.

    Args:
      config: `config.data`.
      seed: of the run.
    """
    if not (config.mixup or config.cutmix):
        return None
    distort = make_distort(config, seed)

    def mixed(batch: Batch) -> Batch:
        keys_B = jax.vmap(lambda *which: key(seed, Stream.MIX, *which))(
            batch["epoch"], batch["example"]
        )
        return mix.mix(keys_B, batch | {"image": distort(batch)}, config.mixup, config.cutmix)

    return mixed


def make_augment(config: ConfigDict, seed: int) -> Callable[[Batch], jax.Array]:
    """Makes augment(batch) -> float32 images that the network sees in training, not normalised.

    Args:
      config: `config.data`.
      seed: of the run.
    """
    mixed = make_mix(config, seed)
    return (lambda batch: mixed(batch)["image"]) if mixed else make_distort(config, seed)


def make_distort(config: ConfigDict, seed: int) -> Callable[[Batch], jax.Array]:
    """Makes distort(batch) -> float32 images, nominally in [0, 255], of what concerns each alone.

    Args:
      config: `config.data`.
      seed: of the run.
    """
    colours = {name: config[name] for name in photometric.OPERATIONS}

    def distort(image_HWC, epoch, example):
        def key_of(stream):
            return key(seed, stream, epoch, example)

        if config.mirror:
            flip = jax.random.bernoulli(key_of(Stream.AUGMENTATION))
            image_HWC = jnp.where(flip, image_HWC[:, ::-1], image_HWC)
        if config.randaugment_layers:
            image_HWC = randaugment.randaugment(
                key_of(Stream.RANDAUGMENT),
                image_HWC,
                config.randaugment_layers,
                config.randaugment_magnitude,
            )
        image_HWC = image_HWC.astype(jnp.float32)
        if any(colours.values()):
            image_HWC = photometric.distort(key_of(Stream.PHOTOMETRIC), image_HWC, colours)
        if config.lighting:
            normal_3 = jax.random.normal(key_of(Stream.LIGHTING), (3,), jnp.float32)
            image_HWC += photometric.lighting(config.lighting * normal_3)
        if config.erasing:
            image_HWC = erasing.erase(key_of(Stream.ERASING), image_HWC, config.erasing)
        return image_HWC

    return lambda batch: jax.vmap(distort)(batch["image"], batch["epoch"], batch["example"])
