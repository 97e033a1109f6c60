"""Distortions of an image's colours: brightness, contrast, saturation, hue; lighting noise.

Howard 2013 (arXiv:1312.5402), section 2, which GoogLeNet's section 6 names: the operations of
Pillow's ImageEnhance, in float32 throughout. Images are RGB in [0, 255].
"""

import jax
import jax.numpy as jnp

GREY = (0.299, 0.587, 0.114)  # of R, G and B; ITU-R 601-2, as in Pillow's Image.convert

# Of the colours of ImageNet's training images in [0, 1]: the principal components, a column each,
# with R, G and B as rows, and their eigenvalues. facebook/fb.resnet.torch, datasets/imagenet.lua.
COMPONENTS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
EIGENVALUES = (0.2175, 0.0188, 0.0045)


def distort(key: jax.Array, image_HWC: jax.Array, ranges: dict[str, float]) -> jax.Array:
    """Applies those of OPERATIONS that are on, one after another in random order.

    Args:
      key: all that is random; what one operation draws does not depend on which others are on.
      image_HWC: float32.
      ranges: x of each of OPERATIONS, 0 for off: a factor is drawn evenly from 1 - x to 1 + x, a
        turn of hue from -x to x.
    """
    on = [number for number, name in enumerate(OPERATIONS) if ranges[name]]
    uniform_2N = jax.random.uniform(key, (2, len(OPERATIONS)), jnp.float32, -1)
    branches = []
    for number in on:
        name, operation = list(OPERATIONS.items())[number]
        amount = (name != "hue") + ranges[name] * uniform_2N[0, number]
        branches.append(lambda image_HWC, f=operation, amount=amount: f(image_HWC, amount))
    for which in jnp.argsort(uniform_2N[1, jnp.asarray(on)]):
        image_HWC = jax.lax.switch(which, branches, image_HWC)
    return image_HWC


def blend(degenerate: jax.Array | float, image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """The degenerate image at factor 0, the image at 1, clipped beyond: Pillow's ImageEnhance."""
    return jnp.clip(degenerate + factor * (image_HWC - degenerate), 0, 255)


def brightness(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black."""
    return blend(0.0, image_HWC, factor)


def contrast(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean of the grey image."""
    return blend(jnp.mean(grey(image_HWC)), image_HWC, factor)


def saturation(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image; Pillow calls it color."""
    return blend(grey(image_HWC)[..., None], image_HWC, factor)


def hue(image_HWC: jax.Array, turn: jax.Array) -> jax.Array:
    """Adds `turn`, in circles, to the hue of HSV; value and saturation stay (Smith 1978)."""
    red, green, blue = jnp.moveaxis(image_HWC, -1, 0)
    value, chroma = jnp.max(image_HWC, -1), jnp.ptp(image_HWC, -1)
    sextant = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    ) / jnp.where(chroma, chroma, 1)
    # how far red, green and blue are, in sextants, from where they begin to fall from value
    distance_HWC = (sextant[..., None] + 6 * turn + jnp.array([5.0, 3.0, 1.0], jnp.float32)) % 6
    falling_HWC = jnp.clip(jnp.minimum(distance_HWC, 4 - distance_HWC), 0, 1)
    return value[..., None] - chroma[..., None] * falling_HWC


def grey(image_HWC: jax.Array) -> jax.Array:
    """Luma, HW."""
    red, green, blue = GREY
    return red * image_HWC[..., 0] + green * image_HWC[..., 1] + blue * image_HWC[..., 2]


def lighting(alpha_3: jax.Array) -> jax.Array:
    """What to add to an image's RGB in [0, 255] (Krizhevsky et al. 2012, section 4.1).

    Args:
      alpha_3: how much of each component, as a multiple of its eigenvalue.
    """
    scaled = 255 * jnp.asarray(COMPONENTS, jnp.float32) * jnp.asarray(EIGENVALUES, jnp.float32)
    # no matrix product, which accelerators would round to fewer bits
    return jnp.sum(alpha_3 * scaled, axis=-1)


OPERATIONS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
