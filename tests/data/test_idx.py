"""IDX files: what is written is read, and every damaged or wrong file is one line that names it."""

import gzip
import struct
import zlib

import numpy as np
import pytest

from inception_jax.data import idx
from inception_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 5, 4), np.uint8)
LABELS = (np.arange(300) % 10).astype(np.uint8)


def encode(values, kind=8):
    """Writes an IDX file as its description says, axis by axis."""
    header = struct.pack(">HBB", 0, kind, values.ndim)
    return header + b"".join(struct.pack(">I", n) for n in values.shape) + values.tobytes()


WHOLE = encode(IMAGES)
ZIPPED = gzip.compress(WHOLE, mtime=0)


def deflate_error():
    """The images under gzip with a block of a kind that deflate does not have."""
    broken = bytearray(ZIPPED)
    broken[10] |= 0b110  # type 3 of the first block is reserved (RFC 1951, 3.2.3)
    with pytest.raises(zlib.error):
        gzip.decompress(bytes(broken))
    return bytes(broken)


def wrong_checksum():
    broken = bytearray(ZIPPED)
    broken[-8] ^= 1  # the lowest byte of the CRC (RFC 1952, 2.2)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(broken))
    return bytes(broken)


def told(path, shape=IMAGES.shape):
    """Returns the one line in which a file is refused."""
    with pytest.raises(UserError) as caught:
        idx.read(path, shape)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("values", [IMAGES, LABELS], ids=["images", "labels"])
@pytest.mark.parametrize("name", ["some-ubyte", "some-ubyte.gz"])
def test_what_is_in_a_file_is_read(name, values, tmp_path):
    path = tmp_path / name
    data = encode(values)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = idx.read(path, values.shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.gz", ZIPPED[: len(ZIPPED) // 2], "is cut short"),
        ("a.gz", ZIPPED[:-4], "is cut short"),
        ("a.gz", ZIPPED[:5], "is cut short"),
        ("a", WHOLE[:10], "is cut short"),
        ("a", WHOLE[:4], "is cut short"),
        ("a", WHOLE[:2], "starts with 0000, not with 00000803"),
        ("a", WHOLE[:-1], "has 6015 bytes, not 6016"),
        ("a", WHOLE[:16], "has 16 bytes, not 6016"),
        ("a.gz", gzip.compress(WHOLE[:-1]), "has 6015 bytes, not 6016"),
        ("a", WHOLE + b"\0", "has 6017 bytes, not 6016"),
        ("a.gz", gzip.compress(WHOLE + b"\0"), "has 6017 bytes, not 6016"),
        ("a", b"", "starts with nothing"),
        ("a.gz", b"", "starts with nothing"),
        ("a.gz", WHOLE, "Not a gzipped file"),
        ("a.gz", wrong_checksum(), "CRC check failed"),
        ("a.gz", deflate_error(), "invalid block type"),
        ("a", ZIPPED, "starts with 1f8b0800, not with 00000803"),
        ("a", encode(LABELS), "starts with 00000801, not with 00000803"),
        ("a", encode(IMAGES.astype(">f4"), 0x0D), "starts with 00000d03, not with 00000803"),
        ("a", encode(IMAGES[:100]), "holds 100 x 5 x 4 values, not 300 x 5 x 4"),
        ("a", encode(IMAGES.swapaxes(1, 2)), "holds 300 x 4 x 5 values, not 300 x 5 x 4"),
    ],
)
def test_a_damaged_or_wrong_file_is_one_line_that_names_it_and_says_what_to_do(
    name, data, reason, tmp_path
):
    path = tmp_path / name
    path.write_bytes(data)
    text = told(path)
    assert reason in text
    assert text.endswith("take a whole copy of the right file")


def test_the_test_split_in_place_of_the_training_split_is_told_by_its_count(tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(encode(np.zeros(10_000, np.uint8))))
    assert "holds 10000 values, not 60000" in told(path, (60_000,))


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    assert "No such file or directory" in told(tmp_path / "absent.gz")
    assert "Is a directory" in told(tmp_path)
