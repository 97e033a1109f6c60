"""What is kept is what was read; damage and reduced images are found out."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    cache.Cached(reduced, "train", settings(tmp_path), 30).read(1)
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
    kept = cache.Cached(source, "train", settings(where), 30)
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


def test_16_bits_are_reduced_to_their_upper_eight():
    grey = np.linspace(0, 65535, 100 * 100).reshape(100, 100).astype(np.uint16)
    small = np.asarray(Image.open(io.BytesIO(cache.reduce(encode(grey, "PNG"), 50))))
    assert np.abs(small.mean() - (grey >> 8).mean()) < 1
    assert np.ptp(small) > 250


def test_threads_that_keep_the_same_example_do_not_meet(tmp_path):
    kept = cache.Cached(Source(), "train", settings(tmp_path))._kept
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: kept.__setitem__(1, (bytes(50_000), 7)), range(2000)))
    assert kept.get(1) == (bytes(50_000), 7)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_others_may_read_what_one_user_keeps(tmp_path):
    """As the umask says: a cache on a shared disk is for all."""
    cache.Cached(Source(), "train", settings(tmp_path)).read(0)
    (tmp_path / "usual").touch()
    (kept,) = tmp_path.rglob("00000000")
    assert kept.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(kept.parent.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep images in config.data.cache=.*file \("):
        cache.Cached(Source(), "train", settings(tmp_path / "file"))


def test_where_no_more_can_be_kept_reading_goes_on_and_that_is_told_once(tmp_path, capfd):
    source = Source()
    kept = cache.Cached(source, "train", settings(tmp_path / "kept"))
    [folder] = (tmp_path / "kept").iterdir()
    folder.rmdir()
    folder.touch()
    for _ in range(2):
        for index in (0, 1):
            assert kept.read(index)[0] == source.images[index]
    assert source.seen == [0, 1, 0, 1]
    assert capfd.readouterr().err == "config.data.cache keeps no more images: Not a directory\n"


def test_memory_is_never_filled(monkeypatch, capfd):
    source = Source()
    kept = cache.Cached(source, "train", settings("ram"))
    kept.read(0)
    monkeypatch.setattr(cache, "_share_of_memory_left", lambda: 0.09)
    kept.read(1)
    monkeypatch.undo()
    for index in (0, 1, 2, 2):
        kept.read(index)
    assert source.seen == [0, 1, 1, 2, 2]
    error = capfd.readouterr().err
    assert error == "config.data.cache keeps no more images: nine tenths of the memory are in use\n"
    assert 0 < cache._share_of_memory_left() < 1


def test_images_that_have_changed_since_are_read_anew(tmp_path, monkeypatch):
    for project in ("one", "two"):
        for split in ("train", "val"):
            folder = tmp_path / project / "images" / split / "a"
            folder.mkdir(parents=True)
            (folder / "1.png").write_bytes(encode(smooth(8, 8), "PNG"))
    options = {"name": "image_folder", "dir": "images", "eval_split": "val"}
    config = settings(tmp_path / "kept", **options)

    def read():
        data = datasets.load(config)
        assert data.train.read(0)[0] == Path("images/train/a/1.png").read_bytes()
        assert data.eval.read(0)[0] == Path("images/val/a/1.png").read_bytes()

    for project in ("one", "two"):
        monkeypatch.chdir(tmp_path / project)
        read()
    Path("images/train/a/1.png").write_bytes(encode(smooth(9, 9), "PNG"))
    read()


def test_evaluation_sees_images_as_they_are():
    data = datasets.load(settings("ram", 4, train_split="test"))
    assert Image.open(io.BytesIO(data.train.read(0)[0])).size == (4, 4)
    assert Image.open(io.BytesIO(data.eval.read(0)[0])).size == (8, 8)


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
