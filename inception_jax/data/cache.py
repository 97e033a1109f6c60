"""Examples kept after they have been read once, in memory or on a disk nearer than their set's.

`config.data.cache` names the place. What is kept is the encoded image; with `config.data
.cache_resize` a smaller one, as JPEG, so that later epochs decode less.
"""

import contextlib
import hashlib
import io
import os
import zlib
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from inception_jax.data.repair import Mended
from inception_jax.data.source import Source
from inception_jax.errors import UserError

QUALITY = 95  # of reduced images; no chroma subsampling


class Cached(Mended):
    """A split of mended images, each read from its set only once."""

    def __init__(self, source: Source, split: str, config: ConfigDict):
        """Opens what is kept of a split.

        Args:
          source: the split.
          split: its name.
          config: `config.data`.

        Raises:
          UserError: the folder cannot be made.
        """
        super().__init__(source)
        self._shorter = config.cache_resize
        self._kept = {} if config.cache == "ram" else _Folder(config, split, source)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns what is kept; if nothing is, reads and keeps it.

        Raises:
          Unreadable: the example is, or has been found to be.
          UserError: it cannot be written.
        """
        found = self._kept.get(index)
        if found is None:
            encoded, label = super().read(index)
            if self._shorter:
                try:
                    encoded = reduce(encoded, self._shorter)
                except Exception as error:  # Pillow's readers raise anything
                    raise self.fail(index, error) from error
            found = encoded, label
            self._kept[index] = found
        return found


def reduce(encoded: bytes, shorter: int) -> bytes:
    """Returns an image whose shorter side has so many pixels, or itself if it has no more.

    Raises:
      OSError: it is damaged.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        scale = shorter / min(image.size)
        if scale >= 1:
            return encoded
        size = [max(round(side * scale), shorter) for side in image.size]
        image.draft("RGB", size)  # a JPEG is decoded at a half or less where that is enough
        reduced = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


class _Folder:
    """A file an example: checksum, label, image."""

    def __init__(self, config, split, source):
        known = hashlib.sha256(f"{config.name} {config.dir} {config.cache_resize}\n".encode())
        for index in range(len(source)):
            known.update(f"{source.name(index)}\n".encode())
        top = Path(os.path.expanduser(config.cache))
        self._folder = top / f"{config.name}-{split}-{known.hexdigest()[:16]}"
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, index):
        try:
            stored = self._path(index).read_bytes()
        except OSError:
            return None
        checksum, rest = int.from_bytes(stored[:4], "big"), stored[4:]
        if zlib.crc32(rest) != checksum or len(rest) < 4:
            return None  # written when the power failed; it is read and written anew
        return rest[4:], int.from_bytes(rest[:4], "big")

    def __setitem__(self, index, found):
        encoded, label = found
        rest = label.to_bytes(4, "big") + encoded
        path = self._path(index)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(zlib.crc32(rest).to_bytes(4, "big") + rest)
            unfinished.replace(path)

    def _path(self, index):
        return self._folder / f"{index // 1000:05}" / f"{index:08}"

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot keep images in config.data.cache={self._folder.parent} ({error.strerror}):"
                " make room there, or set it to another folder, ram, or '' for none"
            ) from None
