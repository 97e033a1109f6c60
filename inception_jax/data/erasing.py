"""Random erasing (Zhong et al. 2017, arXiv:1708.04896): a rectangle of an image becomes noise."""

import jax
import jax.numpy as jnp

# The paper's, section 4: the rectangle's share of the area, and its height / width.
AREA = (0.02, 0.4)
ASPECT = (0.3, 1 / 0.3)


def erase(key: jax.Array, image_HWC: jax.Array, probability: float) -> jax.Array:
    """Fills a random rectangle with a value for each pixel and channel, drawn evenly from 0 to 255.

    The area is drawn evenly from AREA, the height / width evenly from the part of ASPECT for which
    the rectangle fits, its place evenly from those where it does. The paper draws again what does
    not fit.

    Args:
      key: all that is random.
      image_HWC: float32 in [0, 255], square.
      probability: of erasing anything.
    """
    side = image_HWC.shape[0]
    draws_key, noise_key = jax.random.split(key)
    chance, *draws = jax.random.uniform(draws_key, (5,), jnp.float32)
    top, left, height, width = rectangle(jnp.stack(draws), side)
    inside_HW = within(side, top, left, height, width)
    noise_HWC = jax.random.bits(noise_key, image_HWC.shape, jnp.uint8).astype(image_HWC.dtype)
    return jnp.where(((chance < probability) & inside_HW)[..., None], noise_HWC, image_HWC)


def rectangle(uniform_4: jax.Array, side: int) -> tuple[jax.Array, ...]:
    """Top, left, height and width in whole pixels, of four numbers in [0, 1)."""
    area, aspect, top, left = uniform_4
    share = AREA[0] + (AREA[1] - AREA[0]) * area
    # height and width, side * sqrt(share * ratio) and side * sqrt(share / ratio), are at most side
    low, high = jnp.maximum(ASPECT[0], share), jnp.minimum(ASPECT[1], 1 / share)
    ratio = low + (high - low) * aspect
    height, width = (jnp.round(side * jnp.sqrt(share * r)) for r in (ratio, 1 / ratio))
    height, width = jnp.maximum(height, 1), jnp.maximum(width, 1)
    corner = (jnp.floor(top * (side - height + 1)), jnp.floor(left * (side - width + 1)))
    return tuple(number.astype(jnp.int32) for number in (*corner, height, width))


def within(side: int, top, left, height, width) -> jax.Array:
    """Which pixels of a square image are in a rectangle, HW."""
    places = jnp.arange(side)
    rows, columns = ((places >= a) & (places < a + n) for a, n in ((top, height), (left, width)))
    return rows[:, None] & columns
