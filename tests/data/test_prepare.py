"""Preparing ImageNet: what it shows, what it needs, what it leaves when it is cut off."""

import contextlib
import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import namedtuple

import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from miniature_imagenet import KNOWN_TO_TFDS, TARS, images, make
from PIL import Image

from configs import imagenet as recipe
from inception_jax import console
from inception_jax.data import datasets, imagenet, prepare
from inception_jax.errors import UserError

TRAIN, VALIDATION, TEST = 8, 4, 3  # photographs
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    make(folder, TRAIN, VALIDATION)
    return folder


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """Tars with a test split and all kinds of images, and what they hold."""
    folder = tmp_path_factory.mktemp("dirty")
    return folder, make(folder, TRAIN, VALIDATION, TEST, dirty=True)


def run(tars, sets):
    return prepare.main(["prepare", "imagenet", f"--manual_dir={tars}", f"--data_dir={sets}"])


def is_read(sets):
    """Whether training finds the whole set, rather than none."""
    config = recipe.get_config().data
    config.dir = str(sets)
    try:
        data = datasets.load(config)
    except UserError as error:
        assert "imagenet2012 is not in" in str(error)
        return False
    assert (len(data.train), len(data.eval)) == (TRAIN, VALIDATION)
    assert all(data.train.read(index)[0] for index in range(TRAIN))
    return True


def left(sets):
    return [path.name for path in (sets / "imagenet2012").glob("*incomplete*")]


def stored(sets, split):
    """Every image of a split as it lies on disk, by name: (encoded, label)."""
    builder = tfds.builder("imagenet2012", data_dir=sets, file_format="array_record")
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return {e["file_name"].decode(): (e["image"], int(e["label"])) for e in source}


class Recorder(console.Console):
    """Remembers what was shown, and where the bar ends."""

    def __init__(self):
        super().__init__()
        self.shown, self.total = [], None

    def progress(self, completed, total, at, numbers):
        self.total = total
        return super().progress(completed, total, at, numbers)

    def show(self, completed, at, numbers, seconds_left):
        self.shown.append((completed, at, numbers, seconds_left))


@pytest.fixture(scope="module")
def told(dirty, tmp_path_factory):
    """What preparing the dirty tars says: where the set is, the lines, and a Recorder."""
    sets = tmp_path_factory.mktemp("sets")
    builder = tfds.builder("imagenet2012", data_dir=sets, file_format="array_record")
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "SECONDS_BETWEEN_LOOKS", -10)
        recorder = Recorder()
        recorder.line = lines.append
        imagenet.prepare(builder, str(dirty[0]), recorder)
    return sets, lines, recorder


def test_progress_goes_evenly_from_nothing_to_all_through_every_pass(told, dirty):
    """An image is counted when it is read and when it is written, so that the bar never rests."""
    recorder = told[2]
    passes = list(dict.fromkeys(at for _, at, _, _ in recorder.shown))
    assert passes == [f"{verb} {split}" for split in TARS for verb in ("reading", "writing")]
    assert recorder.total == 2 * sum((dirty[0] / tar).stat().st_size for tar in TARS.values())
    for split, made in dirty[1].items():
        for verb in ("reading", "writing"):
            numbers = [n for _, at, n, _ in recorder.shown if at == f"{verb} {split}"]
            counts = [int(re.match(r"(\d+) images  ", number)[1]) for number in numbers]
            assert counts == list(range(1, len(made) + 1))
    done = [completed for completed, _, _, _ in recorder.shown]
    assert done == sorted(done)
    assert 0 < done[0] < 0.1 * recorder.total
    assert 0.75 * recorder.total < done[-1] <= recorder.total
    assert all(seconds_left >= 0 for _, _, _, seconds_left in recorder.shown)


def test_bytes_read_and_time_left_are_right(clean, tmp_path, monkeypatch):
    """Tars of tiny images are padding for a good part; the numbers are of whole passes."""
    now = [100.0]
    monkeypatch.setattr(imagenet.time, "monotonic", lambda: now[0])
    shown = []
    recorder = Recorder()
    recorder.show = lambda *row: shown.append(row)
    builder = tfds.builder("imagenet2012", data_dir=tmp_path, file_format="array_record")
    watch = imagenet._Watch(builder, {"train": 10**9, "validation": 10**8}, recorder)
    watch._begin("reading train", 10**9)
    now[0] += 10
    watch._count(5 * 10**8)
    watch._begin("writing train", 10**9)
    now[0] += 10
    watch._count(10**8)
    assert shown == [
        (5e8, "reading train", "1 images  0.5 of 1.0 GB  50 MB/s", pytest.approx(34)),
        (1.1e9, "writing train", "1 images  0.1 of 1.0 GB  10 MB/s", pytest.approx(20)),
    ]


def test_a_terminal_has_one_bar_and_nothing_of_tfds(clean, tmp_path):
    ours, theirs = pty.openpty()
    command = (*("-m", "inception_jax.data.prepare", "imagenet"), f"--manual_dir={clean}")
    process = subprocess.Popen(
        [sys.executable, *command, f"--data_dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "140"},
        stdout=theirs,
        stderr=subprocess.STDOUT,
    )
    os.close(theirs)
    printed = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            printed += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed.decode())
    assert re.search(r"(looking through the tars|(reading|writing) \w+) ━+", text)
    assert re.findall(r"train: .*|imagenet2012 is in", text)
    assert not re.search(r"(?i)generating|shuffling|downloading|it/s|reuse", text)


def test_everything_is_stored_as_it_is_but_what_tfds_knows_by_name(told, dirty):
    for split, made in dirty[1].items():
        found = stored(told[0], split)
        assert {name: label for name, (_, label) in found.items()} == {
            name: image.label for name, image in made.items()
        }
        for name, data in images(dirty[0], split):
            if name not in KNOWN_TO_TFDS:
                assert found[name][0] == data
    found = stored(told[0], "train")
    for name in KNOWN_TO_TFDS:
        with Image.open(io.BytesIO(found[name][0])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")


def test_without_a_test_tar_there_is_no_test_split(clean, told, tmp_path):
    assert run(clean, tmp_path) == 0
    splits = tfds.builder("imagenet2012", data_dir=tmp_path).info.splits
    assert set(splits) == {"train", "validation"}
    assert set(tfds.builder("imagenet2012", data_dir=told[0]).info.splits) == set(TARS)


def test_images_that_cannot_be_read_are_counted_named_and_listed(told, dirty):
    lines, made = told[1], dirty[1]
    bad = {(s, name) for s in made for name, i in made[s].items() if i.state == "unreadable"}
    listed = (told[0] / "imagenet2012" / "5.1.0" / "unreadable.txt").read_text().splitlines()
    assert len(bad) == 6
    assert {tuple(row.split("\t")[:2]) for row in listed} == bad
    assert {row.split("\t")[2] for row in listed} >= {"zero bytes", "not an image"}
    (line,) = [line for line in lines if line.startswith("images that cannot be read: 6: ")]
    named = [name for _, name in bad if f"{name} (" in line]
    assert len(named) == 5
    assert "and 1 more" in line
    assert "config.data.unreadable" in line
    odd = [n for s in made for n, i in made[s].items() if i.state == "repairable"]
    count = len([name for name in odd if name not in KNOWN_TO_TFDS])  # TFDS mends the others
    assert any(re.match(rf"images that are CMYK, .*: {count};", line) for line in lines)


def test_the_number_of_images_is_told_beside_the_official_one(told, dirty):
    """A tar whose end is nothing but zeros, as some downloads leave it, shows nowhere else."""
    count = len(dirty[1]["train"])
    assert f"train: {count} images, where the official tar has 1,281,167" in told[1]


def test_good_images_make_no_report(clean, tmp_path, capfd):
    assert run(clean, tmp_path) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "images that" not in printed.out
    assert not list(tmp_path.rglob("unreadable.txt"))


def test_validation_images_that_are_missing_shift_no_labels(clean, tmp_path, capfd):
    """TFDS gives out the labels in the order of the names, whatever is missing among these."""
    shutil.copy(clean / TARS["train"], tmp_path)
    with tarfile.open(tmp_path / TARS["validation"], "w") as archive:
        for name, data in images(clean, "validation"):
            if name != "ILSVRC2012_val_00000002.JPEG":
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert run(tmp_path, tmp_path / "sets") == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ILSVRC2012_img_val.tar is not as it was published: ILSVRC2012")
    assert error.count("\n") == 1
    assert not is_read(tmp_path / "sets")


def test_too_little_room_is_told_before_anything_is_written(clean, tmp_path, monkeypatch, capfd):
    tars = sum(path.stat().st_size for path in clean.glob("*.tar"))
    needed = imagenet.PEAK * tars + imagenet.SPARE
    asked = []

    def usage(free):
        return lambda path: asked.append(str(path)) or Usage(10**12, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", usage(needed - 1))
    assert run(clean, tmp_path) == 1
    printed = capfd.readouterr()
    assert printed.err == (
        f"error: preparing imagenet2012 needs 0.2 GB in {tmp_path}/imagenet2012, where 0.2 GB are"
        " free: make room, or take another --data_dir (for gs://, another TMPDIR)\n"
    )
    assert [path.name for path in (tmp_path / "imagenet2012").iterdir()] == [".lock"]
    assert asked == [f"{tmp_path}/imagenet2012"]
    assert not is_read(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", usage(needed + 1))
    assert run(clean, tmp_path) == 0
    assert is_read(tmp_path)


def test_at_its_peak_it_takes_what_the_check_asks_for(tmp_path, monkeypatch):
    """With buckets on disk, as for any split of more than a gigabyte."""
    make(tmp_path, train=40, val=10, size="real")
    tars = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    sets = tmp_path / "sets"
    monkeypatch.setattr(tfds.core.shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    on_disk, buckets = [], []
    count = imagenet._Watch._count

    def measure(self, size):
        files = {path.name: path.stat().st_size for path in sets.rglob("*") if path.is_file()}
        on_disk.append(sum(files.values()))
        buckets.append(any(name.startswith("bucket") for name in files))
        count(self, size)

    monkeypatch.setattr(imagenet._Watch, "_count", measure)
    assert run(tmp_path, sets) == 0
    assert len(on_disk) == 2 * 50
    assert any(buckets)
    padding = 2 * 65_536  # to which each shard is filled up; of the official set it is in SPARE
    assert 0.9 * tars < max(on_disk) <= imagenet.PEAK * tars + padding


PAUSED = """
import sys
import tensorflow_datasets as tfds
from inception_jax.data import imagenet, prepare

owner, name, calls = {
    "reading": (imagenet._Watch, "_look", 3),
    "writing": (imagenet._Writer, "write", 2),
    "finishing": (tfds.core.DatasetInfo, "write_to_directory", 1),
}[sys.argv.pop(1)]
whole = getattr(owner, name)

def pause(*args, **kwargs):
    global calls
    calls -= 1
    result = whole(*args, **kwargs)
    if not calls:
        print("paused", flush=True)
        sys.stdin.read()
    return result

setattr(owner, name, pause)
sys.exit(prepare.main(sys.argv))
"""


@contextlib.contextmanager
def paused(moment, tars, sets):
    """A preparation that waits in the middle of its work."""
    flags = ("imagenet", f"--manual_dir={tars}", f"--data_dir={sets}")
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED, moment, *flags],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line == "paused\n":
                break
        else:
            raise AssertionError(process.stderr.read())
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "moment",
    [
        "reading",
        pytest.param("writing", marks=pytest.mark.slow),
        pytest.param("finishing", marks=pytest.mark.slow),
    ],
)
def test_after_a_kill_it_starts_afresh_and_nothing_half_made_is_read(
    moment, clean, tmp_path, capfd
):
    with paused(moment, clean, tmp_path) as process:
        assert len(left(tmp_path)) == 1
        assert not is_read(tmp_path)
        capfd.readouterr()
        assert run(clean, tmp_path) == 1  # while the first one is at it
        told = f"error: another run is writing to {tmp_path}/imagenet2012: stop it, or take another"
        assert capfd.readouterr().err == f"{told} --data_dir\n"
        process.kill()
        process.wait()
    (leftover,) = left(tmp_path)
    assert not is_read(tmp_path)
    assert run(clean, tmp_path) == 0
    assert f"removed {tmp_path}/imagenet2012/{leftover}, " in capfd.readouterr().out
    assert left(tmp_path) == []
    assert is_read(tmp_path)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_ends_it_with_one_line_and_leaves_nothing(number, clean, tmp_path):
    with paused("writing", clean, tmp_path) as process:
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
        error = process.stderr.read()
    assert (
        error == "stopped; nothing half made is left to be read, and the same line starts again\n"
    )
    assert left(tmp_path) == []
    assert not is_read(tmp_path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda train, val: train.write_bytes(b"x" * 2000), "_train.tar is no tar, or an empty"),
        (lambda train, val: val.write_bytes(b""), "_val.tar is no tar, or an empty or damaged one"),
        (
            lambda train, val: shutil.copy(val, train),
            "_train.tar is not that of train images: it begins with ILSVRC2012_val_",
        ),
        (shutil.copy, "_val.tar is not that of validation images"),
    ],
)
def test_a_tar_that_is_another_is_named_before_anything_is_read(
    damage, told, clean, tmp_path, capfd
):
    shutil.copytree(clean, tmp_path / "tars")
    damage(*(tmp_path / "tars" / f"ILSVRC2012_img_{name}.tar" for name in ("train", "val")))
    assert run(tmp_path / "tars", tmp_path / "sets") == 1
    error = capfd.readouterr().err
    assert told in error
    assert error.count("\n") == 1
