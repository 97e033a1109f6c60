"""Examples kept after they have been read once, in memory or on a disk nearer than their set's.

`config.data.cache` names the place. What is kept is the encoded image; with `config.data
.cache_resize` a smaller one, as JPEG, so that later epochs decode less.
"""

import errno
import hashlib
import io
import os
import sys
import uuid
import zlib
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from inception_jax.data.repair import Mended, as_rgb
from inception_jax.data.source import Source
from inception_jax.errors import UserError

QUALITY = 95  # of reduced images; no chroma subsampling


class Cached(Mended):
    """A split of mended images, each read from its set only once."""

    def __init__(self, source: Source, split: str, config: ConfigDict, shorter: int = 0):
        """Opens what is kept of a split.

        Args:
          source: the split.
          split: its name.
          config: `config.data`.
          shorter: side in pixels to which larger images are reduced; 0: none is.

        Raises:
          UserError: the folder cannot be made.
        """
        super().__init__(source)
        self._shorter = shorter
        self._full = False
        self._kept = {} if config.cache == "ram" else _Folder(config, split, source, shorter)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns what is kept; if nothing is, reads and keeps it.

        Raises:
          Unreadable: the example is.
          DataError: the set cannot be read.
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
            self._keep(index, found)
        return found

    def _keep(self, index, found):
        """Keeps an example, as long as there is room."""
        if self._full:
            return
        try:
            if isinstance(self._kept, dict) and _share_of_memory_left() < 0.1:
                raise OSError(errno.ENOMEM, "nine tenths of the memory are in use")
            self._kept[index] = found
        except OSError as error:
            self._full = True
            print(f"config.data.cache keeps no more images: {error.strerror}", file=sys.stderr)


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
        reduced = as_rgb(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


class _Folder:
    """A file an example: checksum, label, image."""

    def __init__(self, config, split, source, shorter):
        where = os.path.expanduser(config.dir)
        where = where if "://" in where else os.path.abspath(where)
        known = hashlib.sha256(f"{config.name} {where} {shorter}\n".encode())
        for index in range(len(source)):
            known.update(f"{source.name(index)}\n".encode())
        for file in _files(config.name, where, source):
            state = os.stat(file)
            known.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
        top = Path(os.path.expanduser(config.cache))
        self._folder = top / f"{config.name}-{split}-{known.hexdigest()[:16]}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot keep images in config.data.cache={top} ({error.strerror}): make room"
                " there, or set it to another folder, ram, or '' for none"
            ) from None

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
        path.parent.mkdir(exist_ok=True)
        # two threads or hosts may be at the same example; others may read what one user kept
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            unfinished.write_bytes(zlib.crc32(rest).to_bytes(4, "big") + rest)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _path(self, index):
        return self._folder / f"{index // 1000:05}" / f"{index:08}"


def _files(name, where, source):
    """Local files that change when the images do: an image folder's own, or what TFDS says."""
    if name == "image_folder":
        return map(source.name, range(len(source)))
    return sorted(Path(where, name.split("/")[0]).rglob("dataset_info.json"))


def _share_of_memory_left():
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
    except OSError:  # not Linux
        return 1.0
    left, whole = (int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    return left / whole
