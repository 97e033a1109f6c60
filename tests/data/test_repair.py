"""Files are told apart by their headers: what the scan says is what the decoders then see."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from inception_jax.data import augment, repair
from inception_jax.data.repair import Unreadable, fault, mend, sides

HEIGHT, WIDTH = 45, 67
PHOTOGRAPH = Image.fromarray(load_sample_images().images[1][100:145, 200:267])


def saved(kind="JPEG", image=PHOTOGRAPH, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PLAIN = saved()
FRAME = PLAIN.index(b"\xff\xc0")


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_head(*inserted, at=2):
    """The plain JPEG with bytes put into its header."""
    return PLAIN[:at] + b"".join(inserted) + PLAIN[at:]


def with_frame(start, *values):
    """The plain JPEG with other bytes in its frame."""
    return PLAIN[: FRAME + start] + bytes(values) + PLAIN[FRAME + start + len(values) :]


# A thumbnail has a frame of its own within its segment.
THUMBNAIL = saved(image=PHOTOGRAPH.resize((16, 12)))
UNCHANGED = {
    "plain": PLAIN,
    "4:4:4": saved(subsampling=0),
    "grey": saved(image=PHOTOGRAPH.convert("L")),
    "progressive": saved(progressive=True),
    "restarts": saved(restart_marker_blocks=1),
    "colour profile": saved(icc_profile=b"\xff\xc0\x00\x11\x08" + bytes(70_000)),
    "comment": saved(comment=b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03"),
    "application segments": with_head(*(segment(0xE0 + n, bytes(n)) for n in range(1, 16))),
    "thumbnail": with_head(segment(0xE2, THUMBNAIL)),
    "empty segments": with_head(segment(0xFE, b""), segment(0xE5, b"")),
    "fill bytes": with_head(b"\xff" * 3, at=FRAME),
    "fill bytes at once": with_head(b"\xff" * 2),
    "PNG": saved("PNG"),
    "grey PNG": saved("PNG", PHOTOGRAPH.convert("L")),
}


@pytest.mark.parametrize("kind", UNCHANGED)
def test_the_size_in_the_header_is_what_pillow_and_tensorflow_see(kind):
    encoded = UNCHANGED[kind]
    assert mend(encoded) is encoded
    assert fault(encoded) is None
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.size[::-1] == sides(encoded) == (HEIGHT, WIDTH)
        expected = np.asarray(image.convert("RGB")).astype(int)
    found = augment.decode(encoded)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found - expected).max() <= 1


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by 90 degrees
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
MENDED = {
    "turned": saved(exif=EXIF),
    "CMYK": saved(image=PHOTOGRAPH.convert("CMYK")),
    "GIF": saved("GIF"),
    "TIFF": saved("TIFF"),
    "turned PNG": saved("PNG", exif=EXIF),
    "turned by XMP": saved(xmp=XMP),
}


@pytest.mark.parametrize("kind", MENDED)
def test_what_decoders_see_differently_becomes_what_pillow_sees(kind):
    mended = mend(MENDED[kind])
    assert mended.startswith(b"\x89PNG")  # without loss
    with Image.open(io.BytesIO(MENDED[kind])) as image:
        expected = image.convert("RGB")
    if kind.startswith("turned"):
        expected = expected.transpose(Image.Transpose.ROTATE_270)
    assert sides(mended) == expected.size[::-1]
    assert (augment.decode(mended) == np.asarray(expected)).all()


def test_photographs_that_say_they_are_upright_stay_as_they_are():
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010F] = "a camera"
    encoded = saved(exif=exif)
    assert b"Exif" in encoded
    assert mend(encoded) is encoded
    assert sides(encoded) == (HEIGHT, WIDTH)


HOPELESS = {
    "zero bytes": (b"", "zero bytes"),
    "only a beginning": (b"\xff\xd8", None),
    "a beginning and an end": (b"\xff\xd8\xff\xd9", None),
    "cut within the header": (PLAIN[: FRAME - 3], None),
    "cut within the frame": (PLAIN[: FRAME + 6], None),
    "cut within the frame, with an end": (PLAIN[: FRAME + 6] + b"\xff\xd9", None),
    "cut within the pixels": (PLAIN[:-40], "truncated"),
    "a segment past the end": (with_head(b"\xff\xe1\xff\xff")[:400] + b"\xff\xd9", None),
    "12 bits": (with_frame(4, 12), None),
    "16 bits": (with_frame(4, 16), None),
    "lossless": (with_frame(1, 0xC3), None),
    "hierarchical": (with_frame(1, 0xC5), None),
    "no rows": (with_frame(5, 0, 0), None),
    "no columns": (with_frame(7, 0, 0), None),
    "too many pixels": (with_frame(5, 0xFF, 0, 0xFF, 0), "more than 178,956,970 pixels"),
    "PNG of no pixels": (UNCHANGED["PNG"][:16] + bytes(8) + UNCHANGED["PNG"][24:], None),
    "PNG cut within its header": (UNCHANGED["PNG"][:20], None),
    "text": (b"<html></html>", "not an image"),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_what_has_no_pixels_is_unreadable_in_a_few_words(kind):
    encoded, reason = HOPELESS[kind]
    told = fault(encoded)
    assert told
    assert "\n" not in told
    assert reason is None or reason in told
    with pytest.raises(Unreadable):
        mend(encoded)


def test_arithmetic_coding_is_never_taken_for_the_usual():
    """Pillow reads it, if its library can; TensorFlow does not."""
    encoded = with_frame(1, 0xC9)
    try:
        mended = mend(encoded)
    except Unreadable:
        return
    assert not mended.startswith(b"\xff\xd8")
    assert augment.decode(mended).shape == (*sides(mended), 3)


def damaged(encoded, head, seed):
    """Flips, overwrites or cuts out some bytes of the first so many, or cuts the file there."""
    rng = np.random.default_rng(seed)
    data = bytearray(encoded)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, min(head, len(data))))
        match rng.integers(4):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + 2] = rng.bytes(2)
            case 2:
                del data[at : at + int(rng.integers(1, 30))]
            case 3:
                data[at:at] = rng.bytes(int(rng.integers(1, 5)))
    if rng.random() < 0.2:
        ends = {b"\xff\xd8": b"\xff\xd9", b"\x89P": repair.ENDS["PNG"]}
        data = data[: int(rng.integers(0, head))] + ends.get(bytes(data[:2]), b"")
    return bytes(data)


@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "comment", "PNG", "turned"])
def test_a_damaged_header_raises_unreadable_or_gives_the_size_that_all_decoders_see(kind):
    encoded = (UNCHANGED | MENDED)[kind]
    head = encoded.find(b"\xff\xda") + 12 if encoded.startswith(b"\xff\xd8") else 60
    repair.ready_for_threads()
    outcomes = {"unreadable": 0, "decoded": 0, "damaged": 0}
    for seed in range(150):
        data = damaged(encoded, head, seed)
        try:
            mended = mend(data)
        except Unreadable:
            outcomes["unreadable"] += 1
            continue
        try:
            pixels = augment.decode(mended)
        except tf.errors.OpError:  # the pipeline names it then
            outcomes["damaged"] += 1
            continue
        outcomes["decoded"] += 1
        assert pixels.shape == (*sides(mended), 3), seed
        with Image.open(io.BytesIO(mended)) as image:
            assert image.size[::-1] == sides(mended), seed
    assert outcomes["unreadable"] > 5
    assert outcomes["decoded"] > 5 or kind == "PNG"  # whose checksums leave nothing to be decoded


def test_a_program_in_postscript_is_no_image():
    with pytest.raises(Unreadable, match="not an image"):
        mend(saved("EPS"))
