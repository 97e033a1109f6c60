"""gs://: sets are prepared into it and read from it, and are never half there."""

import threading
import time

import fake_gcs
import pytest
from miniature_imagenet import images, make

from configs import imagenet as recipe
from inception_jax.data import cloud, datasets, prepare
from inception_jax.errors import UserError

pytestmark = pytest.mark.skipif(not fake_gcs.AVAILABLE, reason="needs openssl for a certificate")
TRAIN, VALIDATION = 8, 4


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    return folder, make(folder, TRAIN, VALIDATION)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A storage that answers for Google's; what is prepared for it lies in tmp_path/staging."""
    (tmp_path / "staging").mkdir()
    monkeypatch.setattr(cloud.tempfile, "gettempdir", lambda: str(tmp_path / "staging"))
    with fake_gcs.serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def run(tars, sets):
    return prepare.main(["prepare", "imagenet", f"--manual_dir={tars}", f"--data_dir={sets}"])


def load(sets):
    config = recipe.get_config().data
    config.dir = sets
    return datasets.load(config)


def test_what_is_prepared_in_a_bucket_is_read_from_there(server, tars, tmp_path, capfd):
    folder, made = tars
    assert run(folder, "gs://bucket/whole") == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    where = "whole/imagenet2012/5.1.0"
    assert printed.out.splitlines()[-1] == f"imagenet2012 is in gs://bucket/{where}"
    names = [name for bucket, name in server.objects if bucket == "bucket"]
    assert names[-2:] == [f"{where}/dataset_info.json", f"{where}/features.json"]
    assert f"{where}/unfinished.txt" not in names
    assert [p.name for p in (tmp_path / "staging").glob("*/*")] == [".lock"]

    data = load("gs://bucket/whole")
    for source, split in ((data.train, "train"), (data.eval, "validation")):
        found = sorted(source.read(index) for index in range(len(source)))
        official = images(folder, split)
        assert found == sorted((image, made[split][name].label) for name, image in official)

    before = dict(server.objects)
    assert run(tmp_path / "nothing", "gs://bucket/whole") == 0
    assert capfd.readouterr().out == f"imagenet2012 is in gs://bucket/{where}\n"
    assert server.objects == before


def test_a_copy_that_is_cut_off_is_no_set_and_goes_on_with_the_same_line(server, tars, capfd):
    server.puts_left = 3  # the mark that it has begun, and two files
    assert run(tars[0], "gs://bucket/cut") == 1
    error = capfd.readouterr().err
    assert error.startswith("error: could not prepare imagenet2012: ")
    assert error.count("\n") == 1
    copied = {name for name in server.objects if "5.1.0/" in name[1]}
    assert len(copied) == 3
    with pytest.raises(UserError, match=r"imagenet2012 is not in gs://bucket/cut"):
        load("gs://bucket/cut")

    server.puts_left, server.log = None, []
    assert run(tars[0], "gs://bucket/cut") == 0
    printed = capfd.readouterr().out
    assert "train: " not in printed  # it has been prepared
    assert not copied & set(server.log) - {("bucket", "cut/imagenet2012/5.1.0/unfinished.txt")}
    data = load("gs://bucket/cut")
    assert (len(data.train), len(data.eval)) == (TRAIN, VALIDATION)


def test_what_other_tars_left_is_not_taken_for_these(server, tars, tmp_path, capfd):
    server.puts_left = 3
    assert run(tars[0], "gs://bucket/other") == 1
    make(tmp_path / "others", TRAIN + 1, VALIDATION, seed=1)
    shard = "bucket", "other/imagenet2012/5.1.0/imagenet2012-train.array_record-00001-of-00002"
    server.objects[shard] = b"of a set that had two"
    server.puts_left = None
    assert run(tmp_path / "others", "gs://bucket/other") == 0
    assert shard not in server.objects
    data = load("gs://bucket/other")
    found = {data.train.read(index)[0] for index in range(len(data.train))}
    assert found == {image for _, image in images(tmp_path / "others", "train")}


def test_a_bucket_that_refuses_is_one_line_before_anything_is_prepared(server, tars, capfd):
    server.denied = True
    assert run(tars[0], "gs://bucket/denied") == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: cannot reach gs://bucket/denied: ")
    assert printed.err.count("\n") == 1
    with pytest.raises(UserError, match=r"cannot reach gs://bucket/denied: "):
        load("gs://bucket/denied")


def test_a_bucket_that_never_answers_is_told_soon(monkeypatch):
    """TensorFlow alone goes on trying for many minutes."""
    answer = threading.Event()
    monkeypatch.setattr(cloud, "SECONDS", 0.1)
    monkeypatch.setattr(cloud, "_ask", lambda path: answer.wait(60))
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        load("gs://bucket/silent")
    answer.set()
    assert time.monotonic() - started < 10
    assert str(caught.value).startswith("cannot reach gs://bucket/silent: no answer in 0.1 seconds")
