"""What happens to pixels on the host: windows of images are decoded and resized, to uint8.

A function for one image, called by many threads: libjpeg, TensorFlow's kernels and OpenCV's let go
of Python's lock while they work.
"""

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


def make_train(config: ConfigDict) -> Callable[[bytes, Crop, np.ndarray], None]:
    """Makes f(encoded, crop, patch), which fills patch, uint8 (size, size, 3).

    Args:
      config: `config.data`.
    """
    names = list(RESAMPLING) if config.interpolation == "random" else [config.interpolation]

    def train(encoded, crop, patch):
        if config.interpolation == "antialiased":
            # a place is cut for image_size first, and only then resized
            first = len(patch) if config.crop == "area" else config.image_size
            image = antialiased(decode(encoded, crop), crop, first)
            if first != len(patch):
                image = _rounded(tf.image.resize(image, patch.shape[:2], antialias=True))
            patch[:] = image
        else:
            way = RESAMPLING[names[int(crop.choice * len(names))]]
            cv2.resize(decode(encoded, crop), patch.shape[1::-1], dst=patch, interpolation=way)

    return train


def evaluate(encoded: bytes, crop: Crop, patch: np.ndarray) -> None:
    """Fills patch, uint8 (size, size, 3)."""
    patch[:] = antialiased(decode(encoded, crop), crop, len(patch))


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
    # tf.io's function of that name takes a tenth longer
    window = tf.raw_ops.DecodeAndCropJpeg(
        contents=encoded, crop_window=crop.window, ratio=crop.ratio, **JPEG
    )
    return window.numpy()


def antialiased(pixels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Resizes bilinearly, with a triangle as wide as the scale where it shrinks."""
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
    return _rounded(scaled)[0]


def _rounded(pixels):
    return np.clip(np.round(pixels.numpy()), 0, 255).astype(np.uint8)
