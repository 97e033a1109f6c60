"""What every data set is made of: splits with random access to (encoded image, label)."""

import io
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Source(Protocol):
    """A split: examples by index, in a fixed order."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the encoded image, in a format that Pillow reads, and its label, from 0 on."""

    def name(self, index: int) -> str:
        """Returns what a message calls the example: its file, or its split and index."""


class Dataset(NamedTuple):
    """A training split, the split that evaluation counts, and the classes."""

    train: Source
    eval: Source
    num_classes: int
    class_names: tuple[str, ...] | None = None  # by label, where the set has names


class InMemory:
    """Images held as PNG, so that they take the same way as those of any other set."""

    def __init__(self, split: str, images: Sequence[np.ndarray], labels: Sequence[int]):
        self._split = split
        self._encoded = [_png(image) for image in images]
        self._labels = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._encoded[index], self._labels[index]

    def name(self, index: int) -> str:
        return f"{self._split} example {index}"


def _png(image):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
