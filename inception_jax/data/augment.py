"""What happens to pixels on the host: windows of images are decoded and resized, to uint8."""

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from inception_jax.data.crops import Crop
from inception_jax.data.repair import is_jpeg

OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
}
cv2.setNumThreads(1)  # several images are worked at as it is
# the default transform is no quicker, and off by several grey levels
JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
GROUP = 32  # images to be decoded by a call
DOT = tf.io.encode_jpeg(np.zeros((1, 1, 3), np.uint8)).numpy()
WHOLE_DOT = np.array([0, 0, 1, 1], np.int32)


def make_train(config: ConfigDict) -> Callable[[np.ndarray, Crop, np.ndarray], None]:
    """Makes f(pixels, crop, patch), which fills patch, uint8 (size, size, 3), from a window.

    Args:
      config: `config.data`.
    """

    def by_opencv(pixels, crop, patch):
        cv2.resize(pixels, patch.shape[1::-1], dst=patch, interpolation=OPENCV[crop.way])

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
    """Decodes a JPEG or PNG, or the window of a crop, to uint8 RGB of shape (H, W, 3).

    Raises:
      tf.errors.OpError: it is damaged.
    """
    if not is_jpeg(encoded):
        image = _view(tf.io.decode_png(encoded, channels=3))
        if crop is None:
            return image
        top, left, height, width = crop.window
        return np.ascontiguousarray(image[top : top + height, left : left + width])
    if crop is None:
        return _view(tf.io.decode_jpeg(encoded, **JPEG))
    return _view(tf.io.decode_and_crop_jpeg(encoded, crop.window, ratio=crop.ratio, **JPEG))


def decode_group(
    encoded: Sequence[bytes], crops: Sequence[Crop]
) -> Iterator[np.ndarray | tf.errors.OpError]:
    """Decodes the windows of no more than GROUP images, in parallel.

    One call for all that is usual, windows of JPEGs at their own scale: a call for each would hold
    Python's lock for a tenth of the time that decoding takes, which busies ten cores at most.

    Yields:
      uint8 RGB of shape (H, W, 3) each, or why an image could not be decoded.
    """
    usual = [is_jpeg(e) and c.ratio == 1 for e, c in zip(encoded, crops, strict=True)]
    windows = {}
    if any(usual):
        rows = [row for row, plain in enumerate(usual) if plain]
        given = [(encoded[row], crops[row].window) for row in rows]
        given += [(DOT, WHOLE_DOT)] * (GROUP - len(rows))
        try:
            found = _windows(*map(tf.constant, zip(*given, strict=True)))
            windows = dict(zip(rows, found, strict=False))
        except tf.errors.OpError:
            pass  # one is damaged: it does not say which
    for row, (image, crop) in enumerate(zip(encoded, crops, strict=True)):
        try:
            yield _view(windows[row]) if row in windows else decode(image, crop)
        except tf.errors.OpError as error:
            yield error


@tf.function(
    input_signature=[tf.TensorSpec([GROUP], tf.string), tf.TensorSpec([GROUP, 4], tf.int32)]
)
def _windows(encoded, windows):
    return [tf.io.decode_and_crop_jpeg(encoded[i], windows[i], **JPEG) for i in range(GROUP)]


def _view(tensor):
    """A tensor's own memory; numpy() would copy it."""
    return np.asarray(memoryview(tensor))


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
