"""What is read: the embedded digits, sets of TFDS by index, and the errors where there is none."""

import io
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
def embedded():
    return datasets.load(settings("digits"))


def test_every_digit_is_in_exactly_one_split_with_its_pixels_and_label(embedded):
    scale = np.array([round(Fraction(v * 255, 16)) for v in range(17)], np.uint8)
    assert scale.tolist()[::4] == [0, 64, 128, 191, 255]
    source = load_digits()
    images = scale[source.images.astype(int)]
    expected = Counter(map(fingerprint, images, source.target))
    assert expected.total() == 1797
    assert content(embedded.train) + content(embedded.eval) == expected
    assert (len(embedded.train), len(embedded.eval), embedded.num_classes) == (1437, 360, 10)


def test_held_out_digits_are_in_proportion(embedded):
    counts = np.bincount(load_digits().target)
    held_out = np.bincount([embedded.eval.read(i)[1] for i in range(360)], minlength=10)
    assert held_out.sum() == 360
    assert (np.abs(held_out - counts * 360 / 1797) < 1).all()


def test_which_digits_are_held_out_never_changes(embedded):
    """Otherwise accuracies of different runs are of different images."""
    again = datasets.load(settings("digits"))
    for ours, theirs in ((embedded.train, again.train), (embedded.eval, again.eval)):
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
        (["mnist", "--data_folder=x"], "Unknown command line flag 'data_folder'"),
    ],
)
def test_mistakes_in_preparing_are_one_line(arguments, told, capfd):
    assert prepare.main(["prepare", *arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
