"""What is compiled is used again, by whoever comes, and what a killed run left half is mended."""

import zlib

import jax
import pytest
from conftest import rows, start_main

from inception_jax import compile_cache

RUN = ("--config.epochs=0.3", "--config.log_every_steps=1")
PACKED = zlib.compress(bytes(range(256)) * 100)  # as JAX does, where there is no zstandard


@pytest.fixture
def settings():
    """JAX's, set back after the test."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def entries(folder):
    """When each was last written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}


def cut(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_runs_share_it_at_once_and_later_and_mend_it_and_compute_the_same(run_main, tmp_path):
    """And nothing of it is on the terminal."""
    cache = tmp_path / "cache"
    options = (*RUN, f"--config.compile_cache={cache}")
    run_main(*RUN, f"--workdir={tmp_path}/plain", env={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    expected = rows(tmp_path / "plain")

    at_once = [start_main(*options, f"--workdir={tmp_path}/{name}") for name in ("one", "two")]
    for process, name in zip(at_once, ("one", "two"), strict=True):
        assert process.communicate(timeout=600)[1] == ""
        assert rows(tmp_path / name) == expected
    written = entries(cache)
    assert any("train_step" in name for name in written)

    assert run_main(*options, f"--workdir={tmp_path}/again").stderr == ""
    assert rows(tmp_path / "again") == expected
    assert entries(cache) == written

    for path in cache.glob("*-cache"):
        cut(path)
    unnoticed = next(cache.glob("*eval_step*-cache"))
    unnoticed.chmod(0o444)  # as if it were another run's, and seen while that is writing it
    assert run_main(*options, f"--workdir={tmp_path}/mended").stderr == ""
    assert rows(tmp_path / "mended") == expected
    mended = entries(cache)
    assert mended.keys() == written.keys()
    for name in mended.keys() - {unnoticed.name}:
        zlib.decompress((cache / name).read_bytes())


def test_what_is_not_whole_is_removed_and_nothing_else(tmp_path, settings):
    for length in (0, 1, len(PACKED) // 2, len(PACKED) - 1):
        (tmp_path / f"cut_{length}-cache").write_bytes(PACKED[:length])
    (tmp_path / "whole-cache").write_bytes(PACKED)
    (tmp_path / "mine.txt").write_text("not an entry")
    (tmp_path / "gone-cache").symlink_to("nowhere")  # as if another run had just removed it
    for _ in range(2):
        compile_cache.use(str(tmp_path))
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["gone-cache", "mine.txt", "whole-cache"]
    assert (tmp_path / "whole-cache").read_bytes() == PACKED


def test_it_is_in_the_users_home_and_keeps_what_is_quick_to_compile(
    tmp_path, settings, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    compile_cache.use("~/a/b")
    assert (tmp_path / "a" / "b").is_dir()
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/a/b"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_without_a_folder_jax_has_its_own(settings):
    compile_cache.use("")
    assert {name: getattr(jax.config, name) for name in settings} == settings
