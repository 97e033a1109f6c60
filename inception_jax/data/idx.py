"""IDX, the file format of MNIST and its siblings (LeCun, Cortes & Burges, The MNIST database).

Big-endian: two zero bytes, the type of the values, the number of axes, the length of each axis as
32 bits, the values. Here the type is always 8: unsigned bytes.
"""

import gzip
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

    magic = bytes([0, 0, 8, len(shape)])
    if data[:4] != magic:
        raise UserError(
            f"{path} starts with {data[:4].hex() or 'nothing'}, not with {magic.hex()}, the magic"
            f" number of bytes in {len(shape)} axes: {_COPY}"
        )
    header = 4 + 4 * len(shape)
    if len(data) < header:
        raise UserError(f"{path} is cut short: {_COPY}")
    found = tuple(map(int, np.frombuffer(data, ">u4", len(shape), offset=4)))
    if found != shape:
        raise UserError(f"{path} holds {_times(found)} values, not {_times(shape)}: {_COPY}")
    expected = header + int(np.prod(shape))
    if len(data) != expected:
        raise UserError(f"{path} has {len(data)} bytes, not {expected}: {_COPY}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


_COPY = "take a whole copy of the right file"


def _times(shape):
    return " x ".join(map(str, shape))
