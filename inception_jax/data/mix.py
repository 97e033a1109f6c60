"""Mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

Each image of a batch is mixed with the one before it in the batch, the first with the last, and so
are their labels. In a batch of shuffled examples that is as good as the random pairs of the papers,
and over many devices only one row of each has to move.
"""

import jax
import jax.numpy as jnp

from inception_jax.data import erasing


def mix(
    keys_B: jax.Array, batch: dict[str, jax.Array], mixup: float, cutmix: float
) -> dict[str, jax.Array]:
    """Mixes the images of a whole global batch, and says with whose labels.

    Args:
      keys_B: all that is random about each.
      batch: `image` float32 BHWC, square; `label` int32 B.
      mixup: alpha of the shares' distribution, Beta(alpha, alpha); 0: none.
      cutmix: the same. With both each image takes either, evenly.

    Returns:
      The batch with mixed images, `other_label` int32 B and `share` float32 B, which is how much of
      an image, and so of its label, is its own.
    """
    side = batch["image"].shape[1]
    own_BHW, share_B = jax.vmap(lambda key: draw(key, side, mixup, cutmix))(keys_B)
    own_BHW1 = own_BHW[..., None]
    others_BHWC = jnp.roll(batch["image"], 1, axis=0)
    return batch | {
        "image": own_BHW1 * batch["image"] + (1 - own_BHW1) * others_BHWC,
        "other_label": jnp.roll(batch["label"], 1),
        "share": share_B,
    }


def draw(key: jax.Array, side: int, mixup: float, cutmix: float) -> tuple[jax.Array, jax.Array]:
    """How much of each pixel is the image's own, HW, and the mean of that, both float32.

    Args:
      key: all that is random.
      side: of the image, in pixels.
      mixup: as in mix.
      cutmix: as in mix.
    """
    either_key, share_key, place_key = jax.random.split(key, 3)
    either = jax.random.uniform(either_key, (), jnp.float32) < 0.5
    cut = either if mixup and cutmix else bool(cutmix)
    alpha = jnp.where(cut, cutmix or mixup, mixup or cutmix)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)

    # as in the published code, clovaai/CutMix-PyTorch, train.py: a square cut off by the edges
    half = jnp.floor(side * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre_2 = jax.random.randint(place_key, (2,), 0, side, jnp.int32)
    corner_2 = jnp.clip(centre_2 - half, 0, side)
    sides_2 = jnp.clip(centre_2 + half, 0, side) - corner_2
    others_HW = erasing.within(side, *corner_2, *sides_2)
    kept = (side**2 - sides_2[0] * sides_2[1]) / jnp.float32(side**2)
    return (
        jnp.where(cut, ~others_HW, share).astype(jnp.float32),
        jnp.where(cut, kept, share).astype(jnp.float32),
    )
