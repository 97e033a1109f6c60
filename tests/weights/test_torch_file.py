"""PyTorch's files are read as PyTorch reads them, and what else a pickle may want is refused."""

import collections
import io
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weights import torch_file

NEEDS_TORCH = "PyTorch is not installed: make torch"


def tensors(torch):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10, 6, generator=generator)
    state = collections.OrderedDict(
        base=base,
        view=base[2:5, 1:3],
        transposed=base.T,
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0, 3),
        half=base[0].half(),
        bfloat16=base[1].bfloat16(),
        double=base[2].double(),
        parameter=torch.nn.Parameter(base[3]),
        bool=torch.tensor([True, False]),
        **{str(kind)[6:]: torch.arange(-2, 3).to(kind) for kind in integers(torch)},
    )
    state._metadata = {"": {"version": 1}}
    return state


def integers(torch):
    return torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8


@pytest.mark.parametrize("as_zip", [True, False])
def test_tensors_are_those_that_torch_reads(as_zip, tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    torch.save(tensors(torch), tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    expected = torch.load(tmp_path / "a", weights_only=True)
    got = torch_file.read(tmp_path / "a")
    assert list(got) == list(expected)
    narrow = (torch.half, torch.bfloat16)
    for name, value in expected.items():
        array = (value.float() if value.dtype in narrow else value.detach()).numpy()
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_whole_model_is_refused_and_its_class_named(as_zip, tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    layer = torch.nn.Linear(2, 2)
    torch.save(layer, tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    text = refused(tmp_path / "a")
    assert "asks for torch.nn.modules.linear.Linear to be run" in text
    assert "save model.state_dict()" in text


@pytest.mark.parametrize("as_zip", [True, False])
def test_damaged_files_end_in_one_line_whatever_the_damage(as_zip, tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    torch.save(tensors(torch), tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    whole, rng = (tmp_path / "a").read_bytes(), random.Random(0)
    cut = [whole[:length] for length in range(0, len(whole), 7)]
    flipped = []
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        flipped.append(bytes(damaged))
    messages = [told(tmp_path / "b", content) for content in (*cut, *flipped)]
    assert all(messages[: len(cut)])
    # of a stream nothing but the pickles shows damage; a zip archive has checksums
    assert sum(map(bool, messages[len(cut) :])) > (400 if not as_zip else 700)


def told(path, content):
    """The message, or None where the file can be read."""
    path.write_bytes(content)
    try:
        torch_file.read(path)
    except UserError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return str(error)
    return None


def refused(path):
    with pytest.raises(UserError) as caught:
        torch_file.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Storage:
    """Written as torch writes one: by a persistent id."""

    def __init__(self, kind="FloatStorage", key="0", count=6):
        self.pid = ("storage", Global("torch", kind), key, "cpu", count)


class Global:
    """Written as a name to import."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Written as a call of a name."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


class Pickler(pickle._Pickler):
    """Writes the above without what they name being anywhere."""

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def pickled(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


def tensor(size=(2, 3), stride=(3, 1), offset=0, storage=None):
    arguments = (storage or Storage(), offset, size, stride, False, {})
    return Call("torch._utils", "_rebuild_tensor_v2", *arguments)


NUMBERS = np.arange(6, dtype=np.float32).tobytes()


def as_zip(path, data, storages=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in (storages or {"0": NUMBERS}).items():
            archive.writestr(f"archive/data/{key}", content)


def as_stream(path, data, parts=None):
    parts = parts or [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled({"little_endian": 1})]
    end = pickled(["0"]) + struct.pack("<q", 6) + NUMBERS
    path.write_bytes(b"".join(parts) + data + end)


@pytest.mark.parametrize("write", [as_zip, as_stream])
def test_files_made_by_hand_are_read(write, tmp_path):
    """Else what follows would be refused for another reason than the one it has."""
    write(tmp_path / "a", pickled({"x": tensor(), "y": tensor((2,), (3,), 1)}))
    got = torch_file.read(tmp_path / "a")
    np.testing.assert_array_equal(got["x"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(got["y"], [1, 4])


def attacks(marker):
    """Pickles that would make a file, each in another way."""
    shell = f"touch {marker}"
    by_name = f"cos\nsystem\n(S'{shell}'\ntR."
    yield "os.system", pickled({"x": Call("os", "system", shell)})
    yield "posix.system", pickled({"x": Call("posix", "system", shell)})
    yield "eval", pickled({"x": Call("builtins", "eval", f"open({str(marker)!r}, 'w')")})
    yield "after a tensor", pickled({"x": tensor(), "y": Call("os", "system", shell)})
    yield "protocol 0", by_name.encode()
    yield "INST", f"(S'{shell}'\nios\nsystem\n.".encode()
    yield "OBJ", b"(cos\nsystem\nS'" + shell.encode() + b"'\no."
    yield "NEWOBJ", b"cos\nsystem\nS'" + shell.encode() + b"'\n\x85\x81."
    yield (
        "STACK_GLOBAL",
        b"\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(shell)]) + (shell.encode() + b"\x85R."),
    )
    yield "EXT1", b"\x82\x01."
    yield "deeper name", pickled({"x": Call("torch._utils", "os.system", shell)})
    yield "getattr", pickled({"x": Call("builtins", "getattr", Global("os", "x"), "system")})
    built = b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__cos\nsystem\nsb."
    yield "BUILD", built


@pytest.mark.parametrize("number", range(13))
def test_nothing_that_a_pickle_asks_for_is_run(number, tmp_path):
    marker = tmp_path / "marker"
    every = list(attacks(marker))
    assert len(every) == 13
    name, attack = every[number]
    if name in ("os.system", "protocol 0", "STACK_GLOBAL", "INST"):  # it would work
        pickle.loads(attack)
        assert marker.exists()
        os.remove(marker)
    as_zip(tmp_path / "zip", attack)
    as_stream(tmp_path / "stream", attack)
    good = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled({"little_endian": 1})]
    files = [tmp_path / "zip", tmp_path / "stream"]
    for place in range(3):  # in the pickles before the tensors
        files.append(tmp_path / f"stream{place}")
        parts = [*good[:place], attack, *good[place + 1 :]]
        as_stream(files[-1], pickled({"x": tensor()}), parts)
    for file in files:
        text = refused(file)
        assert "is refused: " in text, text
        assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**62},
        {"size": (2, -3)},
        {"size": (3, 3)},
        {"size": (2**40, 2**40), "stride": (0, 0)},
        {"size": (7,), "stride": (0,)},
        {"size": (2,), "stride": (2**61,)},
        {"stride": (-3, 1)},
        {"stride": (3,)},
        {"size": (2.0, 3.0)},
        {"size": "ab"},
        {"storage": Storage(count=7)},
        {"storage": Storage(count=-6)},
        {"storage": Storage(kind="DoubleStorage")},
        {"storage": Storage(key="../0")},
        {"storage": Storage(key="1")},
        {"storage": 3},
    ],
)
def test_tensors_outside_their_storage_are_refused(change, tmp_path):
    """Else whatever lies behind it in memory would be read, or all memory taken."""
    for write in (as_zip, as_stream):
        write(tmp_path / "a", pickled({"x": tensor(**change)}))
        assert "is damaged or cut short, or not a file of torch.save" in refused(tmp_path / "a")


def test_a_stream_whose_storage_is_another_than_it_says_is_refused(tmp_path):
    as_stream(tmp_path / "a", pickled({"x": tensor(storage=Storage(count=2**40))}))
    assert f"storage 0 has 6 numbers, not {2**40}" in refused(tmp_path / "a")


def test_a_pickle_cannot_end_the_process(tmp_path):
    """Hashing tuples that are deep in each other would overflow the stack of C."""
    for depth, text in ((1_000_000, "more than 10,000 tuples"), (9_999, "maximum recursion depth")):
        as_zip(tmp_path / "a", b"\x80\x02})" + b"\x85" * depth + b"Ns.")
        assert text in refused(tmp_path / "a")


def test_a_pickle_cannot_take_all_memory(tmp_path):
    """A place far out in the memo, or a text of any length, is made room for before it is there."""
    data = pickled({"x": tensor()})
    bombs = {
        "LONG_BINPUT 4294967295": b"r" + struct.pack("<I", 2**32 - 1),
        "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**40),
        "BYTEARRAY8": b"\x96" + struct.pack("<Q", 8) + bytes(8),
    }
    for name, bomb in bombs.items():
        as_zip(tmp_path / "a", data[:2] + b"N" + bomb + b"0" + data[2:])
        text = refused(tmp_path / "a")
        assert name in text or "expected 1099511627776 bytes" in text
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", NUMBERS)
    assert "is compressed" in refused(tmp_path / "a")


@pytest.mark.parametrize(
    "value, text",
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds nothing besides tensors"),
        ({"x": tensor(), "lr": 0.1, "betas": (1, 2)}, "holds lr, betas besides tensors"),
        ({"model": {"x": 3}}, "holds x besides tensors"),
    ],
)
def test_what_is_no_state_dict_is_told(value, text, tmp_path):
    as_zip(tmp_path / "a", pickled(value))
    assert text in refused(tmp_path / "a")


def test_other_zip_archives_and_pickles_are_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("x.npy", b"")
    assert "not a file of torch.save" in refused(tmp_path / "a")
    (tmp_path / "a").write_bytes(pickled({"x": 1}))
    assert "not a file of torch.save" in refused(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"x": tensor()}))
        archive.writestr("archive/byteorder", "big")
    assert "big endian" in refused(tmp_path / "a")
