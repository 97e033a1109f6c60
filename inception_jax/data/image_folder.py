"""A folder of images as a data set: DIR/SPLIT/CLASS/*, in any format that Pillow reads.

python -m inception_jax.main --config=configs/digits.py --config.data.name=image_folder \
    --config.data.dir=DIR --config.data.eval_split=val

A class's label is its rank among the sorted names of the training split's folders. Images may lie
deeper within a class; names that start with a dot are ignored.
"""

import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from inception_jax.data import repair
from inception_jax.data.repair import listed
from inception_jax.data.source import Dataset
from inception_jax.errors import UserError

THREADS = 16  # that open files, which may lie across a network


def load(config: ConfigDict) -> Dataset:
    """Finds the images of both splits and opens the header of each.

    A JPEG or PNG that does not end as such files do is decoded in full; what is damaged further in
    is found when it is read.

    Args:
      config: `config.data`.

    Raises:
      UserError: a folder is missing, empty or not one of classes, the eval split has a class that
        training has not, or files are no images or damaged and are not to be skipped.
    """
    names = class_names(config)
    splits = {
        split: _find(config, split, names)
        for split in dict.fromkeys((config.train_split, config.eval_split))
    }
    if config.unreadable == "error":
        _check_images([path for source in splits.values() for path in source.paths])
    return Dataset(splits[config.train_split], splits[config.eval_split], len(names), names)


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Lists the classes by label, without opening any image.

    Args:
      config: `config.data`.

    Raises:
      UserError: the training split is missing or not one of class folders.
    """
    return tuple(_classes(_split_folder(config, config.train_split)))


class ImageFolder:
    """A split, read from its files."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int]):
        self.paths = paths
        self._labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[bytes, int]:
        """Returns the file as it is, and its label.

        Raises:
          OSError: the file is gone, or may not be read.
        """
        try:
            with open(self.paths[index], "rb") as file:
                return file.read(), self._labels[index]
        except OSError as error:
            # less the path, which its name has
            raise type(error)(error.strerror) from error

    def name(self, index: int) -> str:
        return self.paths[index]


def _find(config, split, names):
    """The images of a split; sorted by label, then by path."""
    folder = _split_folder(config, split)
    classes = _classes(folder)
    if unknown := [name for name in classes if name not in names]:
        raise UserError(
            f"{folder} has classes that {_split_folder(config, config.train_split)} lacks:"
            f" {listed(unknown)}: add them there, or move them away"
        )
    files = {name: _files(folder / name) for name in classes}
    if empty := [name for name in classes if not files[name]]:
        raise UserError(
            f"{folder} has classes without images: {', '.join(empty)}: add some, or remove the"
            " folders"
        )
    images = [(path, label) for label, name in enumerate(names) for path in files.get(name, ())]
    return ImageFolder(*zip(*images, strict=True))


def _split_folder(config, split):
    if "://" in config.dir:
        raise UserError(
            f"config.data.dir={config.dir}: an image folder has to be on this machine: copy it, or"
            " mount the bucket"
        )
    folder = Path(os.path.expanduser(config.dir))
    if not folder.is_dir():
        raise UserError(
            f"config.data.dir={folder} is no folder: set it to the one that holds"
            f" {config.train_split}/CLASS/ and {config.eval_split}/CLASS/"
        )
    splits, _ = _entries(folder)
    if split not in splits:
        raise UserError(
            f"{folder} has no folder {split!r} (it has {listed(splits) or 'none'}): set"
            " config.data.train_split and config.data.eval_split to folders in it, or"
            " config.data.dir to another"
        )
    return folder / split


def _classes(folder):
    classes, others = _entries(folder)
    loose = [name for name in others if Path(name).suffix.lower() in Image.registered_extensions()]
    if loose:
        raise UserError(
            f"{folder} has images outside of class folders: {listed(loose)}: move each into"
            f" {folder}/CLASS/"
        )
    if not classes:
        raise UserError(f"{folder} has no class folders: put images into {folder}/CLASS/")
    return classes


def _files(folder):
    folders, names = _entries(folder)
    below = [path for name in folders for path in _files(folder / name)]
    return sorted([*below, *(str(folder / name) for name in names)])


def _entries(folder):
    """Names of the folders and of the files in a folder, each sorted."""
    try:
        with os.scandir(folder) as entries:
            kinds = {entry.name: entry.is_dir() for entry in entries if entry.name[0] != "."}
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    names = sorted(kinds)
    return [name for name in names if kinds[name]], [name for name in names if not kinds[name]]


def _check_images(paths):
    repair.ready_for_threads()
    with ThreadPool(THREADS) as pool:
        faults = pool.map(_fault, paths)
    if bad := [f"{path} ({fault})" for path, fault in zip(paths, faults, strict=True) if fault]:
        raise UserError(
            f"{len(bad)} of {len(paths)} files cannot be read as images: {listed(bad)}: replace"
            " them by whole images, or remove them"
        )


def _fault(path):
    """Why a file is no image, as far as its header and its end tell, or None."""
    try:
        size = os.path.getsize(path)
        if not size:
            return "zero bytes"
        with open(path, "rb") as file:
            file.seek(max(0, size - 8))
            end = file.read()
            with repair.opened(file) as image:
                if not end.endswith(repair.ENDS.get(image.format, b"")):
                    image.load()
    except Exception as error:  # Pillow's readers raise anything
        return repair.reason(error)
    return None
