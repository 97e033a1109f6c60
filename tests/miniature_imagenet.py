"""ILSVRC2012's official tars in small, clean or with all that real collections hold besides.

python tests/miniature_imagenet.py --out=DIR --train=1000 --val=100 --size=real --dirty

The layout and the names are the official ones: a tar of one tar per synset, and flat tars of the
validation and the test images. DIR/manifest.json says of every image what it is, see Made.
"""

import argparse
import functools
import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import ExifTags, Image

TARS = {
    "train": "ILSVRC2012_img_train.tar",
    "validation": "ILSVRC2012_img_val.tar",
    "test": "ILSVRC2012_img_test.tar",
}
_LISTS = tfds.core.tfds_path("datasets/imagenet2012")
SYNSETS = (_LISTS / "labels.txt").read_text().split()
VALIDATION = (_LISTS / "validation_labels.txt").read_text().split()  # by number of the image

State = Literal["fine", "repairable", "unreadable"]


class Made(NamedTuple):
    """An image of the tars.

    Attributes:
      kind: photograph, or what is wrong with it, a key of STATES.
      state: fine (TensorFlow decodes it to what it shows), repairable or unreadable.
      label: in [0, 1000); -1 in the test split.
    """

    kind: str
    state: State
    label: int


STATES: dict[str, State] = {
    "photograph": "fine",
    "grey": "fine",
    "png": "fine",
    "png of 16 bits": "fine",
    "cmyk": "repairable",
    "gif": "repairable",
    "turned": "repairable",
    "cut": "unreadable",
    "empty": "unreadable",
    "gigantic": "unreadable",
    "text": "unreadable",
}
# The names by which TFDS knows that it has to convert the image; ILSVRC's others lie anywhere.
KNOWN_TO_TFDS = {"n01739381_1309.JPEG": "cmyk", "n02105855_2933.JPEG": "png"}


def make(
    out: Path,
    train: int = 12,
    val: int = 10,
    test: int = 0,
    size: Literal["tiny", "real"] = "tiny",
    dirty: bool = False,
    classes: int = 4,
    seed: int = 0,
) -> dict[str, dict[str, Made]]:
    """Writes the tars and manifest.json, and returns its content: split -> name -> image.

    Args:
      out: folder, which is made.
      train: photographs of the training split, spread evenly over the classes.
      val: photographs of the validation split, at most 50,000.
      test: those of the test split; without any it has no tar.
      size: tiny, 60 to 400 pixels of coarse colours in about 5 kB; or real, about 500 x 375 pixels
        in 80 to 110 kB.
      dirty: adds one image of each kind to the training split, those that TFDS knows by name, and
        a few to the validation split.
      classes: of the 1,000, the first and the last among them.
      seed: of what the images show.
    """
    rng = np.random.default_rng(seed)
    draw = functools.partial(_tiny if size == "tiny" else _real, rng)
    out.mkdir(parents=True, exist_ok=True)
    manifest = {
        "train": _train(out / TARS["train"], train, classes, dirty, draw),
        "validation": _validation(out / TARS["validation"], val, dirty, draw, rng),
    }
    if test:
        numbers = range(1, test + 1)
        names = {f"ILSVRC2012_test_{n:08}.JPEG": _made("photograph", -1) for n in numbers}
        _write(out / TARS["test"], names, draw)
        manifest["test"] = names
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def images(out: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each image of a split, by nothing but tarfile."""
    with tarfile.open(out / TARS[split]) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if split != "train":
                yield member.name, file.read()
                continue
            with tarfile.open(fileobj=file) as inner:
                for image in inner:
                    yield image.name, inner.extractfile(image).read()


def odd(kind: str, draw) -> bytes:
    """An image of a kind, a key of STATES, from a function that draws a photograph."""
    photograph = draw()
    image = Image.open(io.BytesIO(photograph))
    match kind:
        case "photograph":
            encoded = photograph
        case "grey":
            encoded = _saved(image.convert("L"), "JPEG")
        case "cmyk":
            encoded = _saved(image.convert("CMYK"), "JPEG")
        case "png":
            encoded = _saved(image, "PNG")
        case "gif":
            encoded = _saved(image.convert("P"), "GIF")
        case "png of 16 bits":
            deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
            encoded = _saved(Image.fromarray(deep), "PNG")
        case "turned":
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6  # by 90 degrees
            encoded = _saved(image, "JPEG", exif=exif)
        case "cut":
            encoded = photograph[: len(photograph) * 2 // 3]
        case "empty":
            encoded = b""
        case "gigantic":  # its frame says 65,000 x 65,000 pixels
            frame = photograph.index(b"\xff\xc0")
            side = (65_000).to_bytes(2, "big")
            encoded = photograph[: frame + 5] + side + side + photograph[frame + 9 :]
        case "text":
            encoded = b"<html><title>404 Not Found</title></html>\n"
    return encoded


def _train(path, count, classes, dirty, draw):
    chosen = [SYNSETS[round(rank)] for rank in np.linspace(0, len(SYNSETS) - 1, classes)]
    synsets = {synset: {} for synset in chosen}
    for number, synset in zip(range(count), itertools.cycle(chosen), strict=False):
        name = f"{synset}_{number * 37 + 18}.JPEG"
        synsets[synset][name] = _made("photograph", SYNSETS.index(synset))
    if dirty:
        for number, kind in enumerate(STATES):
            synset = chosen[number % classes]
            synsets[synset][f"{synset}_{number + 2}.JPEG"] = _made(kind, SYNSETS.index(synset))
        for name, kind in KNOWN_TO_TFDS.items():
            synset = name.split("_")[0]
            synsets.setdefault(synset, {})[name] = _made(kind, SYNSETS.index(synset))
    with tarfile.open(path, "w") as archive:
        for synset, names in synsets.items():
            buffer = io.BytesIO()
            _write(buffer, names, draw)
            _add(archive, f"{synset}.tar", buffer.getvalue())
    return {name: made for names in synsets.values() for name, made in names.items()}


def _validation(path, count, dirty, draw, rng):
    kinds = ["photograph"] * count
    if dirty:
        kinds[1:1] = ["empty", "cmyk", "cut"]
    names = {
        f"ILSVRC2012_val_{number + 1:08}.JPEG": _made(kind, SYNSETS.index(VALIDATION[number]))
        for number, kind in enumerate(kinds)
    }
    # The official list goes by name; in the official tar the files are in another order.
    order = rng.permutation(list(names))
    _write(path, {str(name): names[name] for name in order}, draw)
    return names


def _made(kind, label):
    return Made(kind, STATES[kind], label)


def _write(path_or_file, names, draw):
    where = {"name" if isinstance(path_or_file, Path) else "fileobj": path_or_file}
    with tarfile.open(mode="w", **where) as archive:
        for name, made in names.items():
            _add(archive, name, odd(made.kind, draw))


def _add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _tiny(rng):
    height, width = rng.integers(60, 400, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return _saved(coarse.resize((int(width), int(height))), "JPEG")


def _real(rng):
    """A part of a photograph with the grain of a camera, which JPEG cannot pack."""
    whole = _photographs()[rng.integers(2)]
    width = rng.uniform(300, 640)
    left, top = rng.uniform(0, 640 - width), rng.uniform(0, 427 - width * 2 / 3)
    box = (left, top, left + width, top + width * 2 / 3)
    size = (500, int(rng.integers(330, 380)))
    part = np.asarray(whole.resize(size, Image.Resampling.BICUBIC, box)).astype(np.int16)
    grain = _grain()[rng.integers(400_000) :][: part.size].reshape(part.shape)
    noisy = np.clip(part + grain, 0, 255).astype(np.uint8)
    return _saved(Image.fromarray(noisy), "JPEG", quality=int(rng.integers(92, 94)))


@functools.cache
def _photographs():
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


@functools.cache
def _grain():
    return np.random.default_rng(0).normal(0, 12, 1_000_000).astype(np.int16)


def _saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=12)
    parser.add_argument("--val", type=int, default=10)
    parser.add_argument("--test", type=int, default=0)
    parser.add_argument("--size", choices=["tiny", "real"], default="tiny")
    parser.add_argument("--dirty", action="store_true")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    manifest = make(**vars(values))
    for split, names in manifest.items():
        size = (values.out / TARS[split]).stat().st_size / 1e6
        print(f"{split}: {len(names):,} images, {size:,.1f} MB")


if __name__ == "__main__":
    main()
