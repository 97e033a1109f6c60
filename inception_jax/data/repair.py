"""Images as people save them: what is odd is mended when it is read, what cannot be read says why.

ImageNet holds JPEGs in CMYK, PNGs and GIFs that are named .JPEG, photographs that lie on their
side; other collections hold worse.
"""

import io
import re
import time
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from inception_jax.data.source import Source
from inception_jax.errors import DataError

JPEG = ("JPEG", "MPO")  # MPO: several in one file, as telephones write them; the first counts
ENDS = dict.fromkeys(JPEG, b"\xff\xd9") | {"PNG": b"IEND\xaeB`\x82"}
PAUSES = (1, 2, 4, 8, 16)  # seconds between attempts to read what cannot be read at once
# Where Pillow looks for a PNG's orientation: its own chunk, ImageMagick's and XMP.
PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def most_pixels() -> int:
    """Above, Pillow takes an image for a decompression bomb."""
    return 2 * Image.MAX_IMAGE_PIXELS


class Unreadable(ValueError):
    """Why an image cannot be read, in a few words."""


def mend(encoded: bytes) -> bytes:
    """Returns a JPEG or PNG that TensorFlow decodes to the upright image that it is meant to be.

    That is the file as it is where TensorFlow sees what Pillow sees, else Pillow's image as RGB in
    PNG. The files as they should be are told from the others by their headers alone.

    Raises:
      Unreadable: it is no image, is cut short, has too many pixels, ...; what is damaged further
        in is found when it is decoded.
    """
    try:
        if _is_plain_jpeg(encoded) or _is_plain_png(encoded):
            return encoded
        with opened(io.BytesIO(encoded)) as image:
            if is_turned(image) or not _decodes_alike(image, encoded):
                return _as_png(image)
            if not encoded.endswith(ENDS[image.format]):
                image.load()  # cut short, or with something behind its end
            if image.format in JPEG and not _frame(encoded):
                return _as_png(image)
            return encoded
    except Exception as error:  # Pillow's readers raise anything
        raise Unreadable("zero bytes" if not encoded else reason(error)) from error


def opened(file: BinaryIO) -> Image.Image:
    """Opens an image in any of Pillow's formats but EPS, a program that Ghostscript would run.

    Raises:
      UnidentifiedImageError: it is in none.
    """
    Image.init()
    return Image.open(file, formats=[name for name in Image.OPEN if name != "EPS"])


def is_jpeg(encoded: bytes) -> bool:
    """Whether it begins as a JPEG does."""
    return encoded.startswith(b"\xff\xd8")


def sides(encoded: bytes) -> tuple[int, int]:
    """Returns height and width of a JPEG or PNG that is mended."""
    if encoded.startswith(b"\x89PNG"):
        width, height = _numbers(encoded, 16, 4)
    else:
        height, width = _numbers(encoded, _frame(encoded) + 5, 2)
    return height, width


def fault(encoded: bytes) -> str | None:
    """Why an image cannot be read, or None; a good one costs no more than a look at its header."""
    try:
        mend(encoded)
    except Unreadable as error:
        return str(error)
    return None


def ready_for_threads() -> None:
    """Silences Pillow and loads its formats, neither of which can be done in threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of 8 bits in three colours; of 16 bits the upper ones.

    Raises:
      ValueError: of its values it is not known which is white.
    """
    if image.mode.startswith("I"):
        image = _high_byte(np.asarray(image))
    elif image.mode == "F":
        raise ValueError("pixels are floating-point numbers, of no known range")
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """What an exception of Pillow's means, in a few words."""
    match error:
        case UnidentifiedImageError():
            return "not an image"
        case Image.DecompressionBombError():
            return f"more than {most_pixels():,} pixels"
        case OSError() if error.strerror:
            return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def is_turned(image: Image.Image) -> bool:
    """Whether its EXIF says that it does not lie as it should be seen."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


class Mended:
    """A split whose images are mended when they are read.

    Attributes:
      faults: why, by index, of all examples that were found to be unreadable, or damaged where
        some patch of theirs needed it.
    """

    def __init__(self, source: Source):
        self._source = source
        self.faults: dict[int, str] = {}
        self._unreadable: set[int] = set()
        self._successes = 0
        ready_for_threads()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns a JPEG or PNG for TensorFlow, and the label.

        Raises:
          Unreadable: the example is, whatever is to be seen of it.
          DataError: nothing of the set can be read at present.
        """
        if index in self._unreadable:
            raise Unreadable(self.faults[index])
        try:
            encoded, label = self._read(index)
            return mend(encoded), label
        except DataError:
            raise
        except Exception as error:  # whatever a source or its libraries raise
            fault = self.fail(index, error)
            self._unreadable.add(index)
            raise fault from error

    def _read(self, index):
        """What the source has, as soon as it gives it: networks and disks fail for a while."""
        before = self._successes
        for pause in (*PAUSES, None):
            try:
                found = self._source.read(index)
            except (FileNotFoundError, PermissionError, IsADirectoryError):
                raise
            except Exception as error:  # whatever a source or its libraries raise
                if pause is not None:
                    time.sleep(pause)
                elif self._successes > before:  # the fault is this example's
                    raise
                else:
                    raise DataError(
                        f"{self.name(index)} cannot be read, and nothing else of its set"
                        f" ({reason(error)}): start again with the same line when it can"
                    ) from error
            else:
                self._successes += 1  # that threads may miscount does no harm
                return found

    def fail(self, index: int, error: Exception) -> Unreadable:
        """Remembers that an example is unreadable, and returns what may be raised."""
        # less the names of nodes and operations that TensorFlow puts around it
        text = re.sub(
            r"\{\{.*?\}\}|\[Op:.*|jpeg::Uncompress failed\.| or crop window", "", str(error)
        )
        self.faults[index] = " ".join(text.split()).rstrip(".")
        return Unreadable(self.faults[index])

    def name(self, index: int) -> str:
        return self._source.name(index)

    def told(self, index: int) -> str:
        """Names an example that was found to be unreadable, and says why."""
        return f"{self.name(index)} ({self.faults[index]})"


def listed(names: Sequence[str]) -> str:
    """The first five, and how many there are besides."""
    further = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + further


def _is_plain_jpeg(encoded):
    """Whether it is whole, of 8 bits, grey or in three colours, of a bearable size and upright.

    Pillow finds out whether it is upright where metadata may say that it is not.
    """
    if not (is_jpeg(encoded) and encoded.endswith(ENDS["JPEG"])):
        return False
    at = _frame(encoded)
    if not at or any(kind in encoded[:at] for kind in (b"Exif", b"ns.adobe.com/xap")):
        return False
    precision, channels = encoded[at + 4], encoded[at + 9]
    height, width = _numbers(encoded, at + 5, 2)
    return precision == 8 and channels in (1, 3) and 0 < height * width <= most_pixels()


def _frame(encoded):
    """Where a JPEG's frame is, baseline, extended or progressive, or 0 if it is not found."""
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if 0xC0 <= marker <= 0xC2:
            return at
        if marker == 0xFF:  # fills up
            at += 1
        elif 0xC4 <= marker < 0xD0 or marker > 0xDA:  # what a header holds
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        else:
            break
    return 0


def _numbers(encoded, at, size):
    """Two big-endian ones, of so many bytes each."""
    ends = at + size, at + 2 * size
    return int.from_bytes(encoded[at : ends[0]], "big"), int.from_bytes(
        encoded[ends[0] : ends[1]], "big"
    )


def _is_plain_png(encoded):
    """Whether it is whole, of a bearable size and says nothing of an orientation."""
    if not (encoded.startswith(b"\x89PNG\r\n\x1a\n") and encoded.endswith(ENDS["PNG"])):
        return False
    width, height = _numbers(encoded, 16, 4)
    return 0 < height * width <= most_pixels() and not any(m in encoded for m in PNG_METADATA)


def _decodes_alike(image, encoded):
    if image.format == "PNG":  # TensorFlow refuses one without its end
        return encoded.endswith(ENDS["PNG"])
    return image.format in JPEG and image.mode in ("L", "RGB")


def _as_png(image):
    buffer = io.BytesIO()
    image = as_rgb(ImageOps.exif_transpose(image))
    image.save(buffer, "PNG", compress_level=1)  # it is decoded at once
    return buffer.getvalue()


def _high_byte(pixels):
    """8 bits of 16, as Pillow and TensorFlow take them of 16 bits in colour."""
    if pixels.min() < 0 or pixels.max() >= 2**16:  # mode I holds 32 bits as well
        raise ValueError("pixels have more than 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
