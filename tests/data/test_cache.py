"""What is kept is what was read; damage and reduced images are found out."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from configs import digits
from inception_jax.data import cache, datasets
from inception_jax.data.repair import Unreadable
from inception_jax.errors import UserError

RNG = np.random.default_rng(0)


def encode(pixels, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height, width):
    small = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


class Source:
    """Counts what is read; the last one is no image."""

    def __init__(self):
        sides = [(60, 80), (90, 60), (20, 30), (64, 64)]
        self.images = [encode(smooth(*side), quality=90) for side in sides] + [b"no image"]
        self.seen = []

    def __len__(self):
        return len(self.images)

    def read(self, index):
        self.seen.append(index)
        return self.images[index], 70000 + index

    def name(self, index):
        return f"picture {index}"


def settings(where, shorter=0, **others):
    config = digits.get_config().data
    config.cache, config.cache_resize = str(where), shorter
    config.update(others)
    return config


@pytest.fixture(params=["ram", "disk"])
def where(request, tmp_path):
    return "ram" if request.param == "ram" else tmp_path / "kept"


def test_each_example_is_read_from_its_set_once(where):
    source = Source()
    kept = cache.Cached(source, "train", settings(where))
    for index in (0, 2, 0, 1, 2, 2, 1):
        assert kept.read(index) == (source.images[index], 70000 + index)
    assert source.seen == [0, 2, 1]
    for _ in range(2):
        with pytest.raises(Unreadable, match="not an image"):
            kept.read(4)
    assert source.seen == [0, 2, 1, 4]
    assert kept.faults == {4: "not an image"}


def test_a_later_run_finds_what_an_earlier_one_kept_of_the_same_images(tmp_path):
    cache.Cached(Source(), "train", settings(tmp_path)).read(1)
    same, other_split, other_set, reduced = Source(), Source(), Source(), Source()
    assert cache.Cached(same, "train", settings(tmp_path)).read(1)[1] == 70001
    assert same.seen == []
    cache.Cached(other_split, "test", settings(tmp_path)).read(1)
    cache.Cached(other_set, "train", settings(tmp_path, dir="/elsewhere")).read(1)
    cache.Cached(reduced, "train", settings(tmp_path, 30)).read(1)
    assert other_split.seen == other_set.seen == reduced.seen == [1]
    renamed = Source()
    renamed.name = lambda index: f"image {index}"
    cache.Cached(renamed, "train", settings(tmp_path)).read(1)
    assert renamed.seen == [1]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:9] + b"x" + b[10:]]
)
def test_what_was_not_written_to_its_end_is_read_and_kept_anew(damage, tmp_path):
    source = Source()
    kept = cache.Cached(source, "train", settings(tmp_path))
    whole = kept.read(1)
    [file] = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(damage(file.read_bytes()))
    assert kept.read(1) == kept.read(1) == whole
    assert source.seen == [1, 1]


def test_large_images_are_reduced_and_others_stay_as_they_are(where):
    source = Source()
    kept = cache.Cached(source, "train", settings(where, 30))
    sizes = {0: (40, 30), 1: (30, 45), 3: (30, 30)}
    for index, size in sizes.items():
        for _ in range(2):
            image = Image.open(io.BytesIO(kept.read(index)[0]))
            assert (image.format, image.size) == ("JPEG", size)
        whole = Image.open(io.BytesIO(source.images[index]))
        exact = np.asarray(whole.resize(size, Image.Resampling.BICUBIC), float)
        mean_square = np.mean((np.asarray(image, float) - exact) ** 2)
        assert 10 * np.log10(255**2 / mean_square) > 35  # dB
    assert kept.read(2)[0] == source.images[2]
    assert source.seen == [0, 1, 3, 2]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep images in config.data.cache=.*file \("):
        cache.Cached(Source(), "train", settings(tmp_path / "file"))
    kept = cache.Cached(Source(), "train", settings(tmp_path / "kept"))
    [folder] = (tmp_path / "kept").iterdir()
    folder.rmdir()
    folder.touch()
    with pytest.raises(UserError, match=r"cannot keep images .*kept \(.*: make room there"):
        kept.read(0)


def test_one_split_that_both_trains_and_evaluates_is_kept_once():
    config = settings("ram", eval_split="train")
    data = datasets.load(config)
    assert data.train is data.eval


def test_training_from_what_is_kept_gives_the_same_numbers(run_main, tmp_path):
    rows = []
    for name, where in (("plain", ""), ("disk", tmp_path), ("again", tmp_path)):
        workdir = tmp_path / name
        run_main(f"--workdir={workdir}", "--config.epochs=0.5", f"--config.data.cache={where}")
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        rows.append([(row["step"], row["loss"]) for row in map(json.loads, lines)])
    assert rows[0] == rows[1] == rows[2]
    assert len(list(tmp_path.glob("digits-test-*/*/*"))) == 360
