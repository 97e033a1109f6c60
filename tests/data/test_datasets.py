"""What is read: digits, Fashion-MNIST, TFDS sets by index, and the errors where there is none."""

import gzip
import hashlib
import io
import struct
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from configs import digits
from inception_jax.data import datasets, prepare
from inception_jax.errors import UserError

F = tfds.features


def pictures(count, seed):
    """(image, label) of many sizes, no two alike."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, (count, 2))
    return [(rng.integers(0, 256, (*size, 3), np.uint8), i % 4) for i, size in enumerate(sizes)]


TRAIN, TEST = pictures(23, seed=0), pictures(7, seed=1)


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A set like any other of TFDS."""

    VERSION = tfds.core.Version("1.0.0")
    names = ("image", "label")
    label = F.ClassLabel(num_classes=4)

    def _info(self):
        kinds = (F.Image(shape=(None, None, 3)), self.label)
        features = F.FeaturesDict(dict(zip(self.names, kinds, strict=True)))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

    def _generate_examples(self, examples):
        for number, example in enumerate(examples):
            yield number, dict(zip(self.names, example, strict=True))


class TinyUnlabelled(TinyPictures):
    """Has a class, but by another name."""

    names = ("image", "kind")


class TinyNamed(TinyPictures):
    """Has names for its classes."""

    label = F.ClassLabel(names=["d", "c", "b", "a"])


class TinyNumbered(TinyPictures):
    """Has a label that is a number of unknown range."""

    label = F.Scalar(np.int64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepares a set once and returns its folder."""
    folders = {}

    def prepare(builder, file_format="array_record"):
        if (builder, file_format) not in folders:
            folder = tmp_path_factory.mktemp("tfds")
            builder(data_dir=folder, file_format=file_format).download_and_prepare()
            folders[builder, file_format] = folder
        return folders[builder, file_format]

    return prepare


def settings(name, folder="", train_split="train", eval_split="test"):
    config = digits.get_config().data
    config.name, config.dir = name, str(folder)
    config.train_split, config.eval_split = train_split, eval_split
    return config


def content(source):
    """Counts the (size, pixels, label) of every example, decoded by Pillow."""
    examples = (source.read(index) for index in range(len(source)))
    return Counter(fingerprint(Image.open(io.BytesIO(data)), label) for data, label in examples)


def fingerprint(image, label):
    pixels = np.asarray(image)
    return pixels.shape, pixels.tobytes(), int(label)


def message(config):
    with pytest.raises(UserError) as caught:
        datasets.load(config)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def small():
    return datasets.load(settings("digits"))


def test_every_digit_is_in_exactly_one_split_with_its_pixels_and_label(small):
    scale = np.array([round(Fraction(v * 255, 16)) for v in range(17)], np.uint8)
    assert scale.tolist()[::4] == [0, 64, 128, 191, 255]
    source = load_digits()
    images = scale[source.images.astype(int)]
    expected = Counter(map(fingerprint, images, source.target))
    assert expected.total() == 1797
    assert content(small.train) + content(small.eval) == expected
    assert (len(small.train), len(small.eval), small.num_classes) == (1437, 360, 10)


def test_examples_that_are_no_files_are_named_by_split_and_index(small, prepared):
    assert (small.train.name(17), small.eval.name(0)) == ("train example 17", "test example 0")
    data = datasets.load(settings("tiny_pictures", prepared(TinyPictures)))
    assert (data.train.name(17), data.eval.name(0)) == ("train example 17", "test example 0")


def test_classes_have_the_names_that_their_set_gives_them(small, prepared):
    """TFDS makes up numbers where a set has no names."""
    assert small.class_names == tuple("0123456789")
    for builder, name, names in (
        (TinyPictures, "tiny_pictures", None),
        (TinyNamed, "tiny_named", ("d", "c", "b", "a")),
    ):
        assert datasets.load(settings(name, prepared(builder))).class_names == names


def test_held_out_digits_are_in_proportion(small):
    counts = np.bincount(load_digits().target)
    held_out = np.bincount([small.eval.read(i)[1] for i in range(360)], minlength=10)
    assert held_out.sum() == 360
    assert (np.abs(held_out - counts * 360 / 1797) < 1).all()


def test_which_digits_are_held_out_never_changes(small):
    """Otherwise accuracies of different runs are of different images."""
    again = datasets.load(settings("digits"))
    for ours, theirs in ((small.train, again.train), (small.eval, again.eval)):
        assert [ours.read(i) for i in range(len(ours))] == [
            theirs.read(i) for i in range(len(theirs))
        ]


def test_splits_go_where_the_config_says():
    swapped = datasets.load(settings("digits", train_split="test", eval_split="train"))
    assert (len(swapped.train), len(swapped.eval)) == (360, 1437)


def test_a_tfds_set_is_read_by_index(prepared):
    data = datasets.load(settings("tiny_pictures", prepared(TinyPictures)))
    assert data.num_classes == 4
    for source, examples in ((data.train, TRAIN), (data.eval, TEST)):
        assert content(source) == Counter(fingerprint(*example) for example in examples)
        forwards = [source.read(i) for i in range(len(source))]
        backwards = [source.read(i) for i in reversed(range(len(source)))]
        assert forwards == backwards[::-1]
        assert all(type(data) is bytes and type(label) is int for data, label in forwards)


def test_the_home_folder_is_found(prepared, monkeypatch):
    folder = prepared(TinyPictures)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(datasets.load(settings("tiny_pictures", f"~/{folder.name}")).train) == 23


def test_a_set_that_cannot_be_read_by_index_says_how_to_prepare_it(prepared):
    folder = prepared(TinyPictures, "tfrecord")
    text = message(settings("tiny_pictures", folder))
    assert "tfrecord" in text
    assert f"`python -m inception_jax.data.prepare tiny_pictures --data_dir={folder}`" in text


def test_a_set_that_is_not_there_says_how_to_get_it_and_where_it_looked(tmp_path):
    text = message(settings("mnist", tmp_path))
    assert f"mnist is not in {tmp_path}" in text
    assert f"`python -m inception_jax.data.prepare mnist --data_dir={tmp_path}`" in text
    assert "config.data.dir" in text


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digit", "digits"), ("mnsit", "mnist"), ("fashion-mnist", "fashion_mnist")],
)
def test_an_unknown_set_names_the_nearest(name, nearest, tmp_path):
    text = message(settings(name, tmp_path))
    assert repr(name) in text
    assert f"did you mean {nearest}?" in text


def test_an_unknown_set_like_no_other_suggests_none(tmp_path):
    text = message(settings("xyzzyxyzzy", tmp_path))
    assert "unknown data set 'xyzzyxyzzy'" in text
    assert "did you mean" not in text


def test_an_unknown_split_lists_those_there_are(prepared):
    folder = prepared(TinyPictures)
    for name in ("digits", "tiny_pictures"):
        for which in ("train_split", "eval_split"):
            text = message(settings(name, folder, **{which: "validation"}))
            assert name in text
            assert "no split 'validation'" in text
            assert text.index("train") < text.index("test")


def test_a_set_without_labels_says_what_it_has_and_what_is_needed(prepared):
    text = message(settings("tiny_unlabelled", prepared(TinyUnlabelled)))
    assert "tiny_unlabelled has features image (Image), kind (ClassLabel): training" in text
    assert "needs image (Image) and label (ClassLabel)" in text


def test_a_set_whose_label_is_no_class_is_an_error_of_one_line(prepared):
    assert "label" in message(settings("tiny_numbered", prepared(TinyNumbered)))


@pytest.mark.parametrize("before", [None, "array_record"])
def test_the_command_that_errors_name_makes_a_set_readable(before, tmp_path, capfd):
    if before:
        TinyPictures(data_dir=tmp_path, file_format=before).download_and_prepare()
    capfd.readouterr()
    assert prepare.main(["prepare", "tiny_pictures", f"--data_dir={tmp_path}"]) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith(f"tiny_pictures is in {tmp_path}")
    data = datasets.load(settings("tiny_pictures", tmp_path))
    assert content(data.train) == Counter(fingerprint(*example) for example in TRAIN)


def test_a_set_in_another_format_is_not_overwritten(tmp_path, capfd):
    TinyPictures(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    files = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    assert prepare.main(["prepare", "tiny_pictures", f"--data_dir={tmp_path}"]) == 1
    told = f"error: {tmp_path}/tiny_pictures/1.0.0 holds tiny_pictures as tfrecord"
    assert capfd.readouterr().err.startswith(told)
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name one data set"),
        (["mnist", "digits"], "name one data set"),
        (["nosuch"], "TFDS knows no data set 'nosuch'"),
        (["imagnet"], "TFDS knows no data set 'imagnet'; did you mean imagenet?"),
        (["digits"], "digits needs no preparation: train with --config.data.name=digits"),
        (["mnist", "--data_folder=x"], "Unknown command line flag 'data_folder'"),
    ],
)
def test_mistakes_in_preparing_are_one_line(arguments, told, capfd):
    assert prepare.main(["prepare", *arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error


FASHION_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def fashion_split(count, seed):
    """As many images as Fashion-MNIST has, none alike: two pixels hold the index, one is random."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28), np.uint8)
    index = np.arange(count)
    images[:, 27, 0], images[:, 0, 27] = index // 256, index % 256
    images[:, 5, 9] = rng.integers(0, 256, count)
    labels = rng.permutation(index % 10).astype(np.uint8)
    return images, labels


def idx_bytes(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(path, values):
    data = idx_bytes(values)
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


@pytest.fixture(scope="module")
def fashion():
    """Made-up images and labels, with their checksums in place of Fashion-MNIST's."""
    splits = {"train": fashion_split(60_000, seed=0), "test": fashion_split(10_000, seed=1)}
    table = {
        split: tuple(
            file._replace(sha256=hashlib.sha256(idx_bytes(values)).hexdigest())
            for file, values in zip(datasets.FASHION_MNIST[split], arrays, strict=True)
        )
        for split, arrays in splits.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "FASHION_MNIST", table)
        yield splits


@pytest.fixture(scope="module")
def fashion_folder(fashion, tmp_path_factory):
    """A folder with the four files of Debian's package dataset-fashion-mnist."""
    folder = tmp_path_factory.mktemp("fashion")
    arrays = (*fashion["train"], *fashion["test"])
    for name, values in zip(FASHION_FILES, arrays, strict=True):
        write_idx(folder / name, values)
    return folder


@pytest.fixture
def no_package(tmp_path, monkeypatch):
    """A machine without Debian's package; returns where it would be."""
    folder = tmp_path / "share" / "fashion-mnist"
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", folder)
    return folder


@pytest.fixture
def fashion_copy(fashion_folder, tmp_path, no_package):
    """The folder's files as links, to be changed."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FASHION_FILES:
        (folder / name).symlink_to(fashion_folder / name)
    return folder


def assert_examples(source, images, labels, step=1):
    assert len(source) == len(images)
    for index in range(0, len(source), step):
        data, label = source.read(index)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), images[index])
        assert (type(label), label) == (int, labels[index])


def test_fashion_mnist_is_read_from_its_idx_files(fashion, fashion_folder, no_package):
    data = datasets.load(settings("fashion_mnist", fashion_folder))
    assert data.num_classes == len(set(data.class_names)) == 10
    assert (data.class_names[0], data.class_names[9]) == ("T-shirt/top", "Ankle boot")
    assert (data.train.name(3), data.eval.name(3)) == ("train example 3", "test example 3")
    assert_examples(data.train, *fashion["train"], step=7)
    assert_examples(data.eval, *fashion["test"])


def test_fashion_mnist_goes_without_unpacking_and_with(fashion, fashion_copy):
    for name, values in zip(FASHION_FILES[2:], fashion["test"], strict=True):
        (fashion_copy / name).unlink()
        write_idx(fashion_copy / name.removesuffix(".gz"), values)
    data = datasets.load(settings("fashion_mnist", fashion_copy, train_split="test"))
    assert_examples(data.train, *fashion["test"], step=11)
    assert_examples(data.eval, *fashion["test"], step=11)


@pytest.mark.parametrize("name", FASHION_FILES)
def test_each_missing_file_of_fashion_mnist_is_named(name, fashion_copy):
    (fashion_copy / name).unlink()
    split = "train" if name.startswith("train") else "test"
    text = message(settings("fashion_mnist", fashion_copy, train_split=split, eval_split=split))
    assert f"{fashion_copy} lacks {name}" in text


@pytest.mark.parametrize("which", [0, 1], ids=["images", "labels"])
def test_another_set_under_the_names_of_fashion_mnist_is_refused(which, fashion, fashion_copy):
    """MNIST and KMNIST have the same names and sizes; so has a file with one pixel changed."""
    path = fashion_copy / FASHION_FILES[2 + which]
    path.unlink()
    values = fashion["test"][which].copy()
    values.flat[-1] ^= 1
    write_idx(path, values)
    text = message(settings("fashion_mnist", fashion_copy, train_split="test"))
    assert text.startswith(f"{path} is not that of Fashion-MNIST")
    assert "it is of another set, or damaged" in text


def test_an_interrupted_preparation_does_not_hide_the_package(
    fashion, fashion_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", fashion_folder)
    (tmp_path / "fashion_mnist" / "3.0.1.incomplete").mkdir(parents=True)
    data = datasets.load(settings("fashion_mnist", tmp_path, train_split="test"))
    assert len(data.eval) == 10_000


def test_a_home_folder_that_nobody_has_is_one_line(no_package):
    assert "neither in ~nobody_has_this/x nor in" in message(
        settings("fashion_mnist", "~nobody_has_this/x")
    )


def test_a_damaged_file_of_fashion_mnist_is_named(fashion_copy):
    path = fashion_copy / FASHION_FILES[2]
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    text = message(settings("fashion_mnist", fashion_copy, train_split="test"))
    assert text.startswith(f"{path} is cut short")


def test_an_unknown_split_of_fashion_mnist_lists_those_there_are(fashion_copy):
    text = message(settings("fashion_mnist", fashion_copy, eval_split="validation"))
    assert "fashion_mnist has no split 'validation': it has train, test" in text


@pytest.mark.parametrize("exists", [True, False])
def test_without_fashion_mnist_it_says_how_to_get_it(exists, tmp_path, no_package):
    folder = tmp_path / "sets"
    if exists:
        folder.mkdir()
    text = message(settings("fashion_mnist", folder))
    assert f"neither in {folder} nor in {no_package}" in text
    assert "`apt install dataset-fashion-mnist`" in text
    assert f"`python -m inception_jax.data.prepare fashion_mnist --data_dir={folder}`" in text
    assert "config.data.dir" in text
    assert all(name in text for name in FASHION_FILES)


def test_fashion_mnist_comes_from_debians_package_where_the_data_folder_has_none(
    fashion, fashion_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", fashion_folder)
    data = datasets.load(settings("fashion_mnist", tmp_path / "absent", train_split="test"))
    assert_examples(data.eval, *fashion["test"], step=11)


class FashionMnist(TinyPictures, skip_registration=True):
    """Named like TFDS's own, which stays registered."""


def test_fashion_mnist_that_tfds_prepared_is_read_even_where_the_package_is(
    prepared, fashion_folder, monkeypatch
):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", fashion_folder)
    data = datasets.load(settings("fashion_mnist", prepared(FashionMnist)))
    assert content(data.train) == Counter(fingerprint(*example) for example in TRAIN)
    assert content(data.eval) == Counter(fingerprint(*example) for example in TEST)


def test_fashion_mnist_in_the_home_folder_is_found(fashion, fashion_copy, monkeypatch):
    monkeypatch.setenv("HOME", str(fashion_copy.parent))
    data = datasets.load(settings("fashion_mnist", "~/copy", train_split="test"))
    assert_examples(data.eval, *fashion["test"], step=11)


def test_an_image_folder_is_not_looked_for_in_a_bucket():
    config = settings("image_folder", "gs://bucket/images")
    with pytest.raises(UserError, match="gs://bucket/images: an image folder has to be on this"):
        datasets.load(config)


def test_a_set_for_a_bucket_is_downloaded_to_where_its_preparation_looks():
    told = datasets.BY_HAND["imagenet2012"].told("gs://bucket/sets")
    assert told.endswith(" into ~/tensorflow_datasets/downloads/manual")


def test_what_a_full_disk_does_to_array_record_is_one_line():
    with pytest.raises(UserError) as caught, prepare._told("mnist", "sets"):
        raise RuntimeError("Failed to finalize writing of split:\n  write() failed")
    assert str(caught.value) == (
        "could not prepare mnist: Failed to finalize writing of split: write() failed"
    )
