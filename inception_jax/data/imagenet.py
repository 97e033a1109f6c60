"""Prepares ILSVRC2012 from its official tars: TFDS does the work, this watches over it.

python -m inception_jax.data.prepare imagenet --manual_dir=DIR

It shows how far it is, sees to it that there is room, starts afresh after an interruption, and
tells which images cannot be read. TFDS mends 23 images by their names; apart from these, every
image is stored as it is.
"""

import os
import re
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, writer

from inception_jax import workdir
from inception_jax.console import Console
from inception_jax.data import datasets, repair
from inception_jax.errors import UserError

TARS = {
    "train": "ILSVRC2012_img_train.tar",
    "validation": "ILSVRC2012_img_val.tar",
    "test": "ILSVRC2012_img_test.tar",  # not needed
}
OFFICIAL = {"train": 1_281_167, "validation": 50_000, "test": 100_000}  # images
# TFDS puts a split's images into buckets, from which it writes the shards; a bucket is removed
# when it has been read, so that the two together never take more than the tars do. Measured: 1.00.
PEAK = 1.01  # bytes on disk at the most, by bytes of the tars
SPARE = 2e8  # bytes, for the bucket at hand, which of the official set holds 1/1000
SECONDS_BETWEEN_LOOKS = 0.1  # at the clock, and so at the console


def prepare(builder: tfds.core.DatasetBuilder, manual_dir: str, console: Console) -> None:
    """Stores the images of the tars in `builder.data_dir`, which is local, and tells about them.

    Args:
      builder: of TFDS's imagenet2012, with file_format array_record.
      manual_dir: folder of the tars; only that of the test split may be missing.

    Raises:
      UserError: there is no room, another preparation is at it, a tar is not that of its split, or
        the validation images are not those that the official labels belong to.
    """
    folder = Path(builder.data_dir).parent
    with workdir.hold(folder, "--data_dir"):
        if os.path.isdir(builder.data_dir):  # another preparation has just ended
            return
        _remove_leftovers(folder, console)
        tars = {split: Path(manual_dir, name) for split, name in TARS.items()}
        sizes = {split: tar.stat().st_size for split, tar in tars.items() if tar.is_file()}
        _check_space(folder, sum(sizes.values()))
        for split in sizes:
            _check_tar(split, tars[split])
        watch = _Watch(builder, sizes, console)
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        with console.progress(0, 2 * sum(sizes.values()), "looking through the tars", ""):
            builder.download_and_prepare(download_config=config)
        watch.tell(Path(builder.data_dir))


def _remove_leftovers(folder, console):
    for left in sorted(folder.glob(f"{constants.INCOMPLETE_PREFIX}*")):
        size = sum(file.stat().st_size for file in left.rglob("*"))
        shutil.rmtree(left)
        console.line(
            f"removed {left}, {_gigabytes(size)} that an interrupted preparation left: it starts"
            " afresh"
        )


def _check_tar(split, tar):
    """Looks at a tar's first member, as it may take hours until TFDS does."""
    try:
        with tarfile.open(tar, "r:") as opened:
            first = opened.next()
    except tarfile.TarError:
        first = None
    if first is None:
        raise UserError(f"{tar} is no tar, or an empty or damaged one: download it again")
    if not first.name.endswith(".tar" if split == "train" else ".JPEG"):
        raise UserError(
            f"{tar} is not that of {split} images: it begins with {first.name}, where"
            f" {'a tar for each class' if split == 'train' else 'images'} should be; are names"
            " swapped?"
        )


def _check_space(folder, tars):
    needed, free = PEAK * tars + SPARE, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"preparing imagenet2012 needs {needed / 1e9:.1f} GB in {folder}, where"
            f" {free / 1e9:.1f} GB are free: make room, or take another --data_dir (for gs://,"
            " another TMPDIR)"
        )


class _Watch:
    """Counts the images on their way through TFDS and looks at each.

    A split goes through twice: out of its tar into buckets, and from there into shards.
    """

    def __init__(self, builder, sizes, console):
        self._builder, self._sizes, self._console = builder, sizes, console
        self._total = 2 * sum(sizes.values())  # bytes
        self._started = time.monotonic()
        self._shown = self._started + 2  # an estimate from less would be none
        self._behind = self._size = 0  # bytes of the tar, of the passes that are over and of this
        self._images = Counter()
        self._odd = 0
        self._faults = []
        self._labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
        self._labels = self._labels.read_text().split()  # by number of the image
        repair.ready_for_threads()

        tfds.disable_progress_bar()
        builder._log_download_bytes = builder._log_download_done = lambda: None
        self._split_generators = builder._split_generators
        builder._split_generators = self._splits
        file_format = builder.info.file_format
        builder._example_writer = lambda: _Writer(file_format, self.written)

    def _splits(self, dl_manager):
        return {
            str(split.name): self._read(
                str(split.name), self._builder._generate_examples(**split.gen_kwargs)
            )
            for split in self._split_generators(dl_manager)
        }

    def _read(self, split, examples):
        self._begin(f"reading {split}", self._sizes[split])
        for key, example in examples:
            encoded = example["image"].read()
            if split == "validation":
                self._check_label(example)
            self._look(split, example["file_name"], encoded)
            yield key, example | {"image": encoded}
            self._count(len(encoded) + 768)  # with its header, and filled up to a multiple of 512
        self._images[split] = self._passed
        self._begin(f"writing {split}", self._sizes[split])

    def written(self, examples: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Counts examples that go into a shard."""
        for key, serialized in examples:
            yield key, serialized
            self._count(len(serialized))

    def _begin(self, at, size):
        self._behind += self._size
        self._at, self._size, self._since = at, size, time.monotonic()
        self._passed = self._bytes = 0

    def _count(self, size):
        self._passed += 1
        self._bytes = min(self._bytes + size, self._size)
        now = time.monotonic()
        if now - self._shown < SECONDS_BETWEEN_LOOKS:
            return
        self._shown = now
        done = self._behind + self._bytes
        speed = self._bytes / (time.monotonic() - self._since) / 1e6
        self._console.show(
            done,
            self._at,
            f"{self._passed:,} images  {self._bytes / 1e9:.1f} of {_gigabytes(self._size)}"
            f"  {speed:.0f} MB/s",
            (now - self._started) * (self._total - done) / done,
        )

    def _check_label(self, example):
        """TFDS takes the labels in the order of the names, whatever is missing among these."""
        name, label = example["file_name"], example["label"]
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if not number or label not in self._labels[int(number[1]) - 1 :][:1]:
            raise UserError(
                f"{TARS['validation']} is not as it was published: {name} is of another name, or"
                " images before it are missing, so that labels cannot be told: download it again"
            )

    def _look(self, split, name, encoded):
        try:
            self._odd += repair.mend(encoded) is not encoded
        except repair.Unreadable as error:
            self._faults.append((split, name, str(error)))

    def tell(self, folder: Path) -> None:
        """Says how many images there are, and what is wrong with them."""
        for split, images in self._images.items():
            official = OFFICIAL[split]
            which = "" if images == official else f", where the official tar has {official:,}"
            self._console.line(f"{split}: {images:,} images{which}")
        if self._odd:
            self._console.line(
                f"images that are CMYK, turned, GIF or the like: {self._odd:,}; they are stored as"
                " they are, and mended whenever they are read"
            )
        if self._faults:
            path = folder / datasets.UNREADABLE
            with workdir.writing(path):
                path.write_text("".join("\t".join(fault) + "\n" for fault in self._faults))
            names = repair.listed([f"{name} ({reason})" for _, name, reason in self._faults])
            self._console.line(
                f"images that cannot be read: {len(self._faults):,}: {names}; all stand in"
                f" {datasets.UNREADABLE} beside the set. They are stored as they are:"
                " config.data.unreadable says whether training refuses them (error) or goes on"
                " without them (skip)"
            )


class _Writer(writer.ExampleWriter):
    """Writes shards as TFDS does, and has the examples counted."""

    def __init__(self, file_format, counted):
        super().__init__(file_format)
        self._counted = counted

    def write(self, path, examples):
        return super().write(path, self._counted(examples))


def _gigabytes(size):
    return f"{size / 1e9:.1f} GB"
