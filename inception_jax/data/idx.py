"""IDX, the file format of MNIST and its siblings (LeCun, Cortes & Burges, The MNIST database).

Big-endian: two zero bytes, the type of the values, the number of axes, the length of each axis as
32 bits, the values. Here the type is always 8: unsigned bytes.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from inception_jax.errors import UserError


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a file of unsigned bytes, compressed by gzip where its name ends in .gz.

    Args:
      path: the file.
      shape: what the file must hold.

    Raises:
      UserError: the file cannot be read, is cut short, or holds something else.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except EOFError:
        raise UserError(f"{path} is cut short: {_COPY}") from None
    except (OSError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"could not read {path} ({reason}): {_COPY}") from None

    expected = header(shape)
    start = data[: len(expected)]
    if start[:4] != expected[:4]:
        raise UserError(
            f"{path} starts with {start[:4].hex() or 'nothing'}, not with {expected[:4].hex()}, the"
            f" magic number of bytes in {len(shape)} axes: {_COPY}"
        )
    if len(start) < len(expected):
        raise UserError(f"{path} is cut short: {_COPY}")
    if start != expected:
        found = struct.unpack(f">{len(shape)}I", start[4:])
        raise UserError(f"{path} holds {_times(found)} values, not {_times(shape)}: {_COPY}")
    size = len(expected) + math.prod(shape)
    if len(data) != size:
        raise UserError(f"{path} has {len(data)} bytes, not {size}: {_COPY}")
    return np.frombuffer(data, np.uint8, offset=len(expected)).reshape(shape)


def header(shape: tuple[int, ...]) -> bytes:
    """What a file of unsigned bytes of that shape begins with."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


_COPY = "take a whole copy of the right file"


def _times(shape):
    return " x ".join(map(str, shape))
