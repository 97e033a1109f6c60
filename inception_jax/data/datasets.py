"""What to read: data sets as random access to (encoded image, label), whatever lies beneath.

A data set is a function from `config.data` to a Dataset. `digits`, `fashion_mnist` and
`image_folder` are our own; every other name is a TFDS classification set, on disk in a format that
can be read by index.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from inception_jax.data import idx, image_folder
from inception_jax.data.cache import Cached
from inception_jax.data.repair import Mended, listed
from inception_jax.data.source import Dataset, InMemory
from inception_jax.errors import UserError


def load(config: ConfigDict) -> Dataset:
    """Opens the data set that `config.data` names.

    Raises:
      UserError: the name is unknown, or the set or a split is not there; says where it looked. Or
        an image folder holds something else than images of its classes.
    """
    data = OWN.get(config.name, _tfds)(config)
    if not config.cache:
        return data._replace(train=Mended(data.train), eval=Mended(data.eval))
    shorter = config.cache_resize  # evaluation sees images as they are
    train = Cached(data.train, config.train_split, config, shorter)
    same = config.eval_split == config.train_split and not shorter
    return data._replace(
        train=train, eval=train if same else Cached(data.eval, config.eval_split, config)
    )


def count_classes(config: ConfigDict) -> int:
    """The number of classes of the data set that `config.data` names, which need not be here.

    Raises:
      UserError: it is neither here nor one whose classes are known.
    """
    if config.name == "image_folder":  # without opening its images
        return len(image_folder.class_names(config))
    return CLASSES.get(config.name) or load(config).num_classes


def count_examples(config: ConfigDict) -> int:
    """The number of training images of the set that `config.data` names, which need not be here.

    Raises:
      UserError: it is neither here nor one whose size is known.
    """
    known = EXAMPLES.get(config.name) if config.train_split == "train" else None
    return known or len(load(config).train)


def _digits(config):
    """scikit-learn's 1,797 handwritten digits, split 1,437 / 360 with every class in proportion.

    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    The split's seed is fixed: which images are held out does not depend on the run's.
    """
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, held_out = model_selection.train_test_split(
        np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0
    )
    splits = {
        "train": InMemory("train", images[train], digits.target[train]),
        "test": InMemory("test", images[held_out], digits.target[held_out]),
    }
    _check_splits(config, splits)
    names = tuple(map(str, digits.target_names))
    return Dataset(splits[config.train_split], splits[config.eval_split], 10, names)


class IdxFile(NamedTuple):
    """What a file holds, and the SHA-256 of it unpacked."""

    name: str
    shape: tuple[int, ...]
    sha256: str


DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of dataset-fashion-mnist
FASHION_MNIST = {  # split: images, labels
    "train": (
        IdxFile(
            "train-images-idx3-ubyte",
            (60_000, 28, 28),
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            (60_000,),
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    "test": (
        IdxFile(
            "t10k-images-idx3-ubyte",
            (10_000, 28, 28),
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            (10_000,),
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}
FASHION_MNIST_CLASSES = (  # by label, from its README
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def _fashion_mnist(config):
    """Fashion-MNIST, 60,000 and 10,000 grey images of 28x28 pixels in 10 classes.

    From its four IDX files where they lie in `config.dir`, else from TFDS there, else from where
    Debian's package has the files. Source: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """
    if "://" in config.dir:
        return _tfds(config)
    folder = Path(os.path.expanduser(config.dir))
    if not _idx_files(folder):
        if any(folder.glob("fashion_mnist/*/dataset_info.json")):
            return _tfds(config)
        if not _idx_files(DEBIAN_FASHION_MNIST):
            names = [f"{file.name}.gz" for files in FASHION_MNIST.values() for file in files]
            raise UserError(
                f"Fashion-MNIST is neither in {folder} nor in {DEBIAN_FASHION_MNIST}: run"
                " `apt install dataset-fashion-mnist`, or `python -m inception_jax.data.prepare"
                f" fashion_mnist --data_dir={folder}`, or set config.data.dir to a folder with"
                f" {', '.join(names)}"
            )
        folder = DEBIAN_FASHION_MNIST
    _check_splits(config, FASHION_MNIST)
    found = _idx_files(folder)
    train, evaluation = (
        InMemory(split, *(_read_idx(folder, found, file) for file in FASHION_MNIST[split]))
        for split in (config.train_split, config.eval_split)
    )
    return Dataset(train, evaluation, 10, FASHION_MNIST_CLASSES)


def _idx_files(folder):
    """Maps the names of Fashion-MNIST's files to those that are in a folder, packed or not."""
    names = [file.name for files in FASHION_MNIST.values() for file in files]
    paths = [(name, folder / f"{name}{end}") for name in names for end in ("", ".gz")]
    return {name: path for name, path in paths if os.path.isfile(path)}


def _read_idx(folder, found, file):
    if file.name not in found:
        raise UserError(f"{folder} lacks {file.name}.gz, which lies beside {min(found)}: copy it")
    values = idx.read(found[file.name], file.shape)
    if hashlib.sha256(idx.header(file.shape) + values.tobytes()).hexdigest() != file.sha256:
        raise UserError(  # MNIST's files and others' have the same names and sizes
            f"{found[file.name]} is not that of Fashion-MNIST, though it has its shape: it is of"
            " another set, or damaged; take a whole copy of the right file"
        )
    return values


TFDS = "~/tensorflow_datasets"  # where TFDS stores sets
UNREADABLE = "unreadable.txt"  # beside a set: what its preparation found that cannot be read
CLASSES = {"digits": 10, "fashion_mnist": 10, "imagenet2012": 1000}
EXAMPLES = {"digits": 1437, "fashion_mnist": 60_000, "imagenet2012": 1_281_167}  # of train
OWN: dict[str, Callable[[ConfigDict], Dataset]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "image_folder": image_folder.load,
}


class ByHand(NamedTuple):
    """Files that TFDS cannot download, as their owner wants to know who does."""

    files: tuple[str, ...]
    source: str

    def told(self, data_dir: str) -> str:
        """Says what to download and where to put it."""
        return (
            f"download {' and '.join(self.files)} from {self.source} into {self.folder(data_dir)}"
        )

    def folder(self, data_dir: str) -> str:
        """TFDS's own default; that of its own default for what is prepared elsewhere."""
        data_dir = TFDS if "://" in data_dir else data_dir
        return os.path.join(data_dir, "downloads", "manual")


BY_HAND = {
    "imagenet2012": ByHand(
        ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        "https://image-net.org/download-images",
    )
}


class _Tfds:
    def __init__(self, split, data_source):
        self._split = split
        self._data_source = data_source

    def __len__(self) -> int:
        return len(self._data_source)

    def read(self, index: int) -> tuple[bytes, int]:
        example = self._data_source[index]
        return example["image"], int(example["label"])

    def name(self, index: int) -> str:
        return f"{self._split} example {index}"


def _tfds(config):
    import tensorflow_datasets as tfds

    from inception_jax.data import cloud

    folder = os.path.expanduser(config.dir)
    if cloud.is_remote(folder):
        cloud.reach(folder)
    prepare = (
        f"prepare it with `python -m inception_jax.data.prepare {config.name}"
        f" --data_dir={folder}`, or set config.data.dir to where it is"
    )
    if config.name in BY_HAND:
        prepare = f"{BY_HAND[config.name].told(folder)}, then {prepare}"
    try:
        # From the files alone: needs no network, and reads any version that was prepared.
        builder = tfds.core.read_only_builder.builder_from_files(config.name, data_dir=folder)
    except (tfds.core.registered.DatasetNotFoundError, ValueError):
        known = [*OWN, *tfds.list_builders(with_community_datasets=False)]
        base = re.split("[/:]", config.name)[0]
        if base in known:
            raise UserError(f"data set {config.name} is not in {folder}: {prepare}") from None
        raise UserError(
            f"unknown data set {config.name!r}: it is neither one of ours ({', '.join(OWN)}),"
            f" nor in {folder}, nor known to TFDS{hint(base, known)}"
        ) from None

    features = builder.info.features or {}
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    if kinds.get("image") != "Image" or kinds.get("label") != "ClassLabel":
        told = ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items()))
        raise UserError(
            f"data set {config.name} has features {told}: training needs image (Image) and label"
            " (ClassLabel)"
        )
    _check_splits(config, builder.info.splits)
    _check_known(config, epath.Path(builder.data_dir) / UNREADABLE)
    try:
        train, evaluation = (
            _Tfds(
                split,
                builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}),
            )
            for split in (config.train_split, config.eval_split)
        )
    except NotImplementedError:
        raise UserError(
            f"data set {config.name} is stored as {builder.info.file_format.value}, which cannot be"
            f" read by index: move {builder.data_dir} away and {prepare}"
        ) from None
    names = tuple(features["label"].names)
    if names == tuple(map(str, range(len(names)))):  # what TFDS says where a set has none
        names = None
    return Dataset(train, evaluation, features["label"].num_classes, names)


def hint(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown data set: the one that was perhaps meant."""
    starts = [other for other in known if name and re.match(rf"{re.escape(name)}\d", other)]
    close = starts or difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_known(config, report):
    """Refuses at once what would end the run when it is due."""
    if config.unreadable != "error" or not report.exists():
        return
    rows = [line.split("\t") for line in report.read_text().splitlines()]
    here = (config.train_split, config.eval_split)
    if told := [f"{name} ({reason})" for split, name, reason in rows if split in here]:
        raise UserError(
            f"data set {config.name} has {len(told)} images that cannot be read, by {report}:"
            f" {listed(told)}: leave them out with --config.data.unreadable=skip, or prepare the"
            " set anew from whole ones"
        )


def _check_splits(config, known):
    for split in (config.train_split, config.eval_split):
        if split not in known:
            raise UserError(
                f"data set {config.name} has no split {split!r}: it has {', '.join(known)}"
            )
