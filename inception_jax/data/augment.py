"""What happens to pixels on the host: windows of images are decoded and resized, to uint8."""

from collections.abc import Callable

import cv2
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from inception_jax.data.crops import Crop

RESAMPLING = {  # among these the paper chooses, section 6; area alone is free of aliasing
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
}
cv2.setNumThreads(1)  # several images are worked at as it is
# the default transform is no quicker, and off by several grey levels
JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}


def make_train(config: ConfigDict) -> Callable[[np.ndarray, Crop, np.ndarray], None]:
    """Makes f(pixels, crop, patch), which fills patch, uint8 (size, size, 3), from a window.

    Args:
      config: `config.data`.
    """
    names = list(RESAMPLING) if config.interpolation == "random" else [config.interpolation]

    def by_opencv(pixels, crop, patch):
        way = RESAMPLING[names[int(crop.choice * len(names))]]
        cv2.resize(pixels, patch.shape[1::-1], dst=patch, interpolation=way)

    def by_tensorflow(pixels, crop, patch):
        # a place is cut for image_size first, and only then resized
        first = len(patch) if config.crop == "area" else config.image_size
        image = np.empty((first, first, 3), np.uint8)
        antialiased(pixels, crop, image)
        if first != len(patch):
            image = _rounded(tf.image.resize(image, patch.shape[:2], antialias=True))
        patch[:] = image

    return by_tensorflow if config.interpolation == "antialiased" else by_opencv


def decode(encoded: bytes, crop: Crop | None = None) -> np.ndarray:
    """Decodes a JPEG or PNG, or the window of a crop, to uint8 RGB of shape (H, W, 3)."""
    if not encoded.startswith(b"\xff\xd8"):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
        if crop is None:
            return image
        top, left, height, width = crop.window
        return np.ascontiguousarray(image[top : top + height, left : left + width])
    if crop is None:
        return tf.io.decode_jpeg(encoded, **JPEG).numpy()
    return tf.io.decode_and_crop_jpeg(encoded, crop.window, ratio=crop.ratio, **JPEG).numpy()


def antialiased(pixels: np.ndarray, crop: Crop, patch: np.ndarray) -> None:
    """Resizes a window bilinearly, with a triangle as wide as the scale where it shrinks."""
    size = len(patch)
    scale = np.float32(size) / crop.extent.astype(np.float32)
    shift = (-crop.corner * (size / crop.extent)).astype(np.float32)
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=(size, size),
        scale=scale,
        translation=shift,
        kernel_type="triangle",
        antialias=True,
    )
    patch[:] = _rounded(scaled)[0]


def _rounded(pixels):
    return np.clip(np.round(pixels.numpy()), 0, 255).astype(np.uint8)
