"""Checkpoints: a restore never returns a wrong value, and no damage goes unnoticed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.checkpoint import Checkpoints, verify
from inception_jax.errors import UserError

STEPS = (10, 20)


def state(step):
    return {
        "step": jnp.int32(step),
        "params": {"inception_3a": {"5x5": {"kernel": jnp.arange(3000.0).reshape(3, 1000) * step}}},
        "trace": (jnp.full((7,), step, jnp.bfloat16), ()),
    }


def abstract():
    return jax.eval_shape(lambda: state(0))


def restore(workdir):
    """Does what a start does: returns the restored state, its step and the lines for the user."""
    checkpoints = Checkpoints(workdir, keep=3)
    found, damaged = checkpoints.find_newest()
    return checkpoints.restore(found, abstract()), found.step, checkpoints.clean(damaged)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the checkpoints of STEPS."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in STEPS:
        checkpoints.save(step, state(step), {"step": step}, best=None)
    checkpoints.wait()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def assert_is_state(restored, step):
    leaves = zip(jax.tree.leaves(restored), jax.tree.leaves(state(step)), strict=True)
    for got, want in leaves:
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_restores_what_was_saved(workdir):
    restored, step, lines = restore(workdir)
    assert (step, lines) == (20, [])
    assert_is_state(restored, 20)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_first(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 0x04
    path.write_bytes(content)


def flip_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


DAMAGES = (truncate, empty, flip_first, flip_middle, lambda path: path.unlink())


def test_any_damage_to_any_file_is_named_and_the_older_checkpoint_restored(saved, tmp_path):
    names = [p.relative_to(saved) for p in (saved / "checkpoints" / "20").rglob("*") if p.is_file()]
    assert {"checksums.json", "meta.json"} < {name.name for name in names}
    assert len(names) >= 8  # orbax's own files among them
    for name in names:
        for number, damage in enumerate(DAMAGES):
            workdir = shutil.copytree(saved, tmp_path / f"{name.name}{number}")
            damage(workdir / name)
            restored, step, lines = restore(workdir)
            assert step == 10, f"{damage} of {name} went unnoticed"
            assert_is_state(restored, 10)
            assert len(lines) == 1
            assert lines[0].startswith("checkpoint 20 is damaged (")
            assert name.name in lines[0]
            assert (workdir / "checkpoints" / "20.damaged1").is_dir()
            shutil.rmtree(workdir)


def test_a_flipped_bit_anywhere_in_the_checksums_blames_no_other_file(saved, tmp_path):
    folder = shutil.copytree(saved / "checkpoints" / "20", tmp_path / "20")
    assert verify(folder) is None
    file = folder / "checksums.json"
    content = file.read_bytes()
    for i in range(len(content)):
        file.write_bytes(content[:i] + bytes([content[i] ^ 0x04]) + content[i + 1 :])
        assert verify(folder) == "checksums.json is damaged", i


def test_where_every_checkpoint_is_damaged_nothing_is_touched(workdir):
    for step in STEPS:
        empty(workdir / "checkpoints" / str(step) / "meta.json")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .*20: meta.json is damaged"):
        restore(workdir)
    assert sorted(workdir.rglob("*")) == before


def test_what_was_set_aside_before_is_not_overwritten(workdir):
    for number in (1, 2):
        empty(workdir / "checkpoints" / "20" / "meta.json")
        _, _, lines = restore(workdir)
        assert lines[0].endswith(f"set aside as 20.damaged{number}")
        shutil.copytree(workdir / "checkpoints" / "10", workdir / "checkpoints" / "20")
    assert (workdir / "checkpoints" / "20.damaged1" / "meta.json").read_bytes() == b""


def test_an_extra_file_in_a_checkpoint_is_damage(workdir):
    (workdir / "checkpoints" / "20" / "state" / "stray").write_text("x")
    assert verify(workdir / "checkpoints" / "20") == "state/stray is damaged"


def test_unfinished_saves_are_removed_and_never_read(workdir):
    unfinished = workdir / "checkpoints" / ".unfinished" / "30"
    shutil.copytree(workdir / "checkpoints" / "20", unfinished)
    _, step, lines = restore(workdir)
    assert (step, lines) == (20, [])
    assert not unfinished.exists()


def test_no_checkpoints_is_a_new_run(tmp_path):
    assert Checkpoints(tmp_path, keep=3).find_newest() == (None, {})


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        checkpoints.save(step, state(step), {}, best=2 if step >= 2 else 1)
    checkpoints.wait()
    kept = {p.name for p in checkpoints.folder.iterdir() if p.name.isdecimal()}
    assert kept == {"2", "5", "6"}
    assert not list((checkpoints.folder / ".unfinished").iterdir())


def test_the_state_may_change_while_it_is_written(tmp_path):
    """Training donates the saved arrays to the next step; the file must hold the saved values."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    value = {"a": jnp.zeros((1000, 1000))}
    for step in range(3):
        expected = np.asarray(value["a"]).copy()
        checkpoints.save(step, value, {}, best=None)
        for _ in range(20):
            value = add(value)
        checkpoints.wait()
        found, _ = checkpoints.find_newest()
        got = checkpoints.restore(found, {"a": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)})
        np.testing.assert_array_equal(np.asarray(got["a"]), expected)


def test_another_network_is_refused_by_the_names_of_its_arrays(workdir):
    checkpoints = Checkpoints(workdir, keep=3)
    found, _ = checkpoints.find_newest()
    wanted = abstract() | {"batch_stats": jax.ShapeDtypeStruct((3,), jnp.float32)}
    wanted["trace"] = (jax.ShapeDtypeStruct((8,), jnp.bfloat16), ())
    with pytest.raises(UserError, match=r"2 arrays differ, the first batch_stats \(none there, f"):
        checkpoints.restore(found, wanted)


def test_a_failed_save_is_one_line_and_keeps_the_older(workdir):
    checkpoints = Checkpoints(workdir, keep=3)
    shutil.rmtree(checkpoints.folder / ".unfinished", ignore_errors=True)
    (checkpoints.folder / ".unfinished").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"could not save checkpoint 30 .* newest checkpoint is 20"):
        checkpoints.save(30, state(30), {}, best=None)


def test_meta_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, state(5), {"mark": [3, "abc"], "wall_seconds": 1.5}, best=None)
    checkpoints.wait()
    found, _ = checkpoints.find_newest()
    assert found.meta["mark"] == [3, "abc"]
    assert found.meta["wall_seconds"] == 1.5
    assert json.loads((found.folder / "checksums.json").read_text()).keys() >= {"meta.json"}
