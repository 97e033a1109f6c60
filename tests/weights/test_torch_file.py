"""PyTorch's files are read as PyTorch reads them, and never do what a pickle in them asks for."""

import collections
import copyreg
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weights import torch_file

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
FORMS = ("zip", "stream")
START, STOP = b"\x80\x02", b"."
ORDERED_DICT = b"ccollections\nOrderedDict\n"


def plain(value):
    """Opcodes that put a number, a string or a tuple of them on the stack."""
    return pickle.dumps(value, 2)[2:-1]


FLOAT = b"ctorch\nFloatStorage\n"


def string(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def persistent(key="0", count=6, dtype="FloatStorage", view=b""):
    kind = string("storage") + FLOAT.replace(b"FloatStorage", dtype.encode())
    return b"(" + kind + plain(key) + string("cpu") + plain(count) + view + b"tQ"


def tensor(storage=None, offset=0, size=(2, 3), stride=(3, 1)):
    storage = persistent() if storage is None else storage
    rest = plain(offset) + plain(size) + plain(stride)
    hooks = b"\x89" + ORDERED_DICT + b")R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + hooks + b"tR"


def state_dict(**tensors):
    items = b"".join(string(name) + opcodes for name, opcodes in tensors.items())
    return START + ORDERED_DICT + b")R(" + items + b"u" + STOP


STORED = np.arange(6, dtype="<f4").tobytes()
HEADS = [pickle.dumps(MAGIC, 2), pickle.dumps(PROTOCOL, 2)]
HEADS.append(pickle.dumps({"protocol_version": PROTOCOL, "little_endian": True}, 2))


def write(path, form, value, contents=None, heads=None, keys=None):
    """A file of torch.save's, made by hand.

    Args:
      value: the pickle of the state dict.
      contents: of the storages by key.
      heads: the pickles before it, of the stream.
      keys: the pickle after it.
    """
    contents = {"0": STORED} if contents is None else contents
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", value)
            for key, content in contents.items():
                archive.writestr(f"archive/data/{key}", content)
        return path
    keys = pickle.dumps(list(contents), 2) if keys is None else keys
    stored = b"".join(struct.pack("<q", len(c) // 4) + c for c in contents.values())
    path.write_bytes(b"".join([*(heads or HEADS), value, keys, stored]))
    return path


def refusal(path):
    """The message, a line of text."""
    with pytest.raises(UserError) as caught:
        torch_file.read(path)
    message = str(caught.value)
    assert message.isprintable() and len(message.replace(str(path), "")) < 500
    return message


@pytest.mark.parametrize("form", FORMS)
def test_a_file_made_by_hand_is_read(form, tmp_path):
    opcodes = state_dict(w=tensor(), v=tensor(offset=1, size=(2,), stride=(3,)))
    read = torch_file.read(write(tmp_path / "x.pth", form, opcodes))
    assert list(read) == ["w", "v"]
    np.testing.assert_array_equal(read["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(read["v"], np.float32([1, 4]))
    assert read["w"].dtype == np.float32


def test_a_file_of_python_2_is_read(tmp_path):
    """Its dicts come as lists of pairs, its strings as bytes."""
    pair = b"](U\x01w" + tensor(persistent()) + b"e"
    value = START + ORDERED_DICT + b"](" + pair + b"e\x85R" + STOP
    read = torch_file.read(write(tmp_path / "x.pth", "stream", value))
    np.testing.assert_array_equal(read["w"], np.arange(6, dtype=np.float32).reshape(2, 3))


def attacks(marker):
    """Pickles that make a folder, by how."""
    make = string(str(marker))
    call = b"cposix\nmkdir\n"
    text = str(marker).encode()
    return {
        "REDUCE": call + make + b"\x85R",
        "REDUCE of os.system": b"cos\nsystem\n" + string(f"mkdir {marker}") + b"\x85R",
        "REDUCE of posix.system": b"cposix\nsystem\n" + string(f"mkdir {marker}") + b"\x85R",
        "eval": b"cbuiltins\neval\n" + string(f"__import__('os').mkdir('{marker}')") + b"\x85R",
        "eval of Python 2": b"c__builtin__\neval\n"
        + string(f"__import__('os').mkdir('{marker}')")
        + b"\x85R",
        "INST": b"(" + make + b"iposix\nmkdir\n",
        "OBJ": b"(" + call + make + b"o",
        "STACK_GLOBAL": string("posix") + string("mkdir") + b"\x93" + make + b"\x85R",
        "EXT1": b"\x82\xf0" + make + b"\x85R",
        "EXT2": b"\x83\xf0\x00" + make + b"\x85R",
        "EXT4": b"\x84\xf0\x00\x00\x00" + make + b"\x85R",
        "STRING": call + b"S'" + text + b"'\n\x85R",
        "NEWOBJ": b"cbuiltins\nmap\n" + call + make + b"\x85\x86\x81",
        "NEWOBJ_EX": b"cbuiltins\nmap\n" + call + make + b"\x85\x86}\x92",
        "BUILD": b"ctypes\nSimpleNamespace\n)R}"
        + string("__setstate__")
        + call
        + b"sb"
        + make
        + b"b",
    }


@pytest.fixture
def extension():
    """posix.mkdir by number, as copyreg.add_extension offers it to pickles."""
    copyreg.add_extension("posix", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("posix", "mkdir", 0xF0)


def run(payload):
    """By Python's own reader, and an iterator that comes of it to its end."""
    value = pickle.loads(payload)
    if isinstance(value, map):
        list(value)


PLACES = ("zip", "magic", "protocol", "sys_info", "value", "within", "keys")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", attacks("x"))
def test_nothing_that_a_pickle_asks_for_is_run(how, place, tmp_path, extension):
    marker = tmp_path / "marker"
    opcodes = attacks(marker)[how]
    payload = START + opcodes + STOP
    run(payload)
    assert marker.exists()  # Python's own reader runs it
    marker.rmdir()

    path = tmp_path / "x.pth"
    heads, value, keys = list(HEADS), state_dict(w=tensor()), None
    if place in ("zip", "within", "value"):
        value = state_dict(w=tensor(), v=opcodes) if place == "within" else payload
    elif place == "keys":
        keys = payload
    else:
        heads[PLACES.index(place) - 1] = payload
    write(path, "zip" if place == "zip" else "stream", value, heads=heads, keys=keys)
    message = refusal(path)
    assert not marker.exists()
    assert "is refused" in message


@pytest.mark.parametrize("form", FORMS)
def test_what_a_pickle_asks_for_is_named(form, tmp_path):
    value = START + b"cposix\nsystem\n" + string("true") + b"\x85R" + STOP
    message = refusal(write(tmp_path / "x.pth", form, value))
    assert "asks for posix.system to be run" in message and "state_dict()" in message


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
SETTERS = {
    "attributes of a function": REBUILD + b"}" + string("__code__") + b"Nsb",
    "slots of a function": REBUILD + b"N}" + string("__defaults__") + b")s\x86b",
    "attributes of OrderedDict": ORDERED_DICT + b"N}" + string("x") + b"Ns\x86b",
    "items of a dict": ORDERED_DICT + b")R}" + string("items") + REBUILD + b"sb",
    "a class": ORDERED_DICT + b")RN}" + string("__class__") + ORDERED_DICT + b"s\x86b",
}


@pytest.mark.parametrize("what", SETTERS)
def test_a_pickle_changes_no_stand_in(what, tmp_path):
    stand_ins = [item for item in torch_file.STAND_INS.values() if callable(item)]
    before = [(f.__code__, f.__defaults__, dict(vars(f))) for f in stand_ins]
    value = START + SETTERS[what] + STOP
    refusal(write(tmp_path / "x.pth", "zip", value))
    assert [(f.__code__, f.__defaults__, dict(vars(f))) for f in stand_ins] == before
    assert not hasattr(collections.OrderedDict, "x")


def peak(action):
    """Bytes that it had at most."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HUGE = 2**62
BEYOND = {
    "offset": tensor(offset=1),
    "an offset of nothing": tensor(offset=6, size=(1,), stride=(1,)),
    "stride": tensor(stride=(4, 1)),
    "negative offset": tensor(offset=-1, size=(1,), stride=(1,)),
    "negative size": tensor(size=(-1, -6)),
    "negative stride": tensor(offset=5, stride=(-3, -1)),
    "expanded": tensor(size=(7,), stride=(0,)),
    "hugely expanded": tensor(size=(2**40,), stride=(0,)),
    "size that overflows": tensor(size=(HUGE, 4), stride=(0, 0)),
    "stride that overflows": tensor(size=(2, 2), stride=(HUGE, 1)),
    "offset that overflows": tensor(offset=2**70, size=(1,), stride=(1,)),
    "empty, but huge": tensor(size=(0, 2**200), stride=(1, 1)),
    "fewer strides": tensor(stride=(1,)),
    "float size": tensor(size=(2.0, 3)),
    "true offset": tensor(offset=True, size=(1,), stride=(1,)),
    "nested size": tensor(size=((2, 3), 1)),
    "a type that is spelt": tensor(persistent().replace(FLOAT, string(">f4"))),
    "a persistent module": tensor(persistent().replace(b"storage", b"modules")),
    "a view of a storage": tensor(persistent(view=plain(("0", 0, 6)))),
    "no storage": tensor(plain(("storage", "<f4", "0", "cpu", 6))),
    "storage of another length": tensor(persistent(count=7)),
    "storage of huge length": tensor(persistent(count=2**60), size=(1,), stride=(1,)),
    "storage of negative length": tensor(persistent(count=-6)),
    "storage of another type": tensor(persistent(dtype="DoubleStorage")),
    "storage outside the archive": tensor(persistent("../../secret")),
    "storage by a path": tensor(persistent("/etc/hostname")),
    "storage by a number": tensor(persistent(0)),
    "two storages of one name": tensor() + string("v") + tensor(persistent(count=5)),
    "huge memo": b"r\xff\xff\xff\x7f" + tensor(),
    "unknown memo": b"h\x07",
    "long string": b"X\xff\xff\xff\xef",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", BEYOND)
def test_what_lies_beyond_a_storage_is_refused_without_memory_for_it(what, form, tmp_path):
    (tmp_path / "secret").write_bytes(STORED)
    opcodes = BEYOND[what]
    if what == "huge memo":  # where there is something to keep
        value = START + ORDERED_DICT + b")R" + opcodes + STOP
    else:
        value = state_dict(w=opcodes)
    path = write(tmp_path / "x.pth", form, value)
    used = peak(lambda: refusal(path))
    assert used < 2**20, f"{used:,} bytes"


def test_storages_that_lie_over_each_other_are_refused(tmp_path):
    """Any number of entries of an archive may name the same part of the file."""
    path, number, content = tmp_path / "x.pth", 50, b"\0" * 2**16
    names = {f"w{n}": tensor(persistent(str(n), 2**14), 0, (1,), (1,)) for n in range(number)}
    value = state_dict(**names)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", value)
        archive.writestr("archive/data/0", content)
        first = archive.getinfo("archive/data/0")
        for n in range(1, number):
            other = zipfile.ZipInfo(f"archive/data/{n}")
            other.header_offset, other.CRC = first.header_offset, first.CRC
            other.file_size = other.compress_size = len(content)
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    assert "larger than the whole" in refusal(path)


def test_many_names_of_one_storage_take_its_memory_once(tmp_path):
    count = 2**16
    storage = persistent(count=count, dtype="BFloat16Storage")
    names = {f"w{n}": tensor(storage, n, (count - n,), (1,)) for n in range(50)}
    path = write(tmp_path / "x.pth", "zip", state_dict(**names), {"0": bytes(2 * count)})
    read = {}
    used = peak(lambda: read.update(torch_file.read(path)))
    assert len(read) == 50 and used < 5 * 4 * count, f"{used:,} bytes"


NESTED = {
    "deep": b")" + b"\x85" * 200_000,
    "wide": b")" + b"q\x00h\x00\x86" * 60,
}
NESTED_WHERE = {
    "as a key": lambda nested: b"}" + nested + b"Ns",
    "as a key of OrderedDict": lambda nested: ORDERED_DICT + b"]" + nested + b"N\x86a\x85R",
    "as a name of a storage": lambda nested: (
        b"(" + string("storage") + b"ctorch\nFloatStorage\n" + nested + string("cpu") + b"K\x06tQ"
    ),
    "as a persistent name": lambda nested: nested + b"Q",
    "as a storage": tensor,
    "as a size": lambda nested: (
        b"}"
        + string("w")
        + REBUILD
        + b"("
        + persistent()
        + b"K\x00"
        + nested
        + plain((1,))
        + b"tRs"
    ),
    "as the whole": lambda nested: nested,
}


@pytest.mark.parametrize("how", NESTED)
@pytest.mark.parametrize("where", NESTED_WHERE)
def test_tuples_nested_without_end_are_refused_at_once(where, how, tmp_path):
    """Hashing or printing such overflows the stack, or takes for ever: so in a process apart."""
    value = START + NESTED_WHERE[where](NESTED[how]) + STOP
    keys = START + b"]" + NESTED[how] + b"a" + STOP
    write(tmp_path / "zip.pth", "zip", value)
    write(tmp_path / "stream.pth", "stream", value)
    write(tmp_path / "keys.pth", "stream", state_dict(w=tensor()), keys=keys)
    script = """
import sys
from pathlib import Path
from inception_jax.errors import UserError
from inception_jax.weights import torch_file
for path in sys.argv[1:]:
    try:
        torch_file.read(Path(path))
    except UserError:
        print("refused")
"""
    command = [sys.executable, "-c", script, *map(str, tmp_path.glob("*.pth"))]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout.split() == ["refused"] * 3, process.stderr[-500:]


def test_names_reach_the_terminal_without_its_control_characters(tmp_path):
    for name in ("a\nb", "\x1b[2J", "\r"):
        refusal(write(tmp_path / "x.pth", "zip", state_dict(**{name: tensor()})))
    value = START + b"cposix\x1b[2J\rx" + b"x" * 1000 + b"\nsystem\n" + STOP
    refusal(write(tmp_path / "x.pth", "zip", value))


def test_a_compressed_storage_is_refused(tmp_path):
    path = write(tmp_path / "x.pth", "zip", state_dict(w=tensor()), {})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", STORED)
    refusal(path)


def sample(folder, form):
    """A small file with each thing that state dicts have."""
    value = state_dict(
        w=tensor(),
        half=tensor(persistent("1", 4, "HalfStorage"), 0, (2,), (2,)),
        empty=tensor(size=(0, 3)),
        scalar=tensor(offset=5, size=(), stride=()),
    )
    if form == "zip":
        return write(folder / "x.pth", form, value, {"0": STORED, "1": STORED[:8]})
    path = write(folder / "x.pth", form, value, {"0": STORED})
    keys = pickle.dumps(["0", "1"], 2)
    stored = struct.pack("<q", 6) + STORED + struct.pack("<q", 4) + STORED[:8]
    path.write_bytes(b"".join([*HEADS, value, keys, stored]))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_short_anywhere_is_refused_in_one_line(form, tmp_path):
    whole = sample(tmp_path, form).read_bytes()
    assert len(torch_file.read(tmp_path / "x.pth")) == 4
    for length in range(0, len(whole), 7):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_give_arrays_or_one_line(form, tmp_path):
    whole = sample(tmp_path, form).read_bytes()
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "flipped.pth", 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read = torch_file.read(path)
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            assert all(type(array) is np.ndarray for array in read.values())
    assert 500 < refused < 1500


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: see `make torch`")


def saved(torch, value, path, form):
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    return path


def check(torch, path):
    """Asserts that every bit is as torch reads it."""
    expected = torch.load(path, weights_only=True)
    read = torch_file.read(path)
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        narrow = tensor.dtype in (torch.float16, torch.bfloat16)
        array = (tensor.float() if narrow else tensor).detach().numpy()
        assert read[name].dtype == array.dtype and read[name].shape == array.shape, name
        assert read[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("form", FORMS)
def test_every_type_is_read_as_torch_reads_it(form, torch, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"bool": torch.tensor([True, False, True])}
    for name in ("float32", "float64", "float16", "bfloat16"):
        values = torch.from_numpy(rng.standard_normal((3, 5)) * 1e3).to(getattr(torch, name))
        values[0, :4] = torch.tensor([np.inf, -np.inf, np.nan, -0.0])
        tensors[name] = values
    for name in ("int64", "int32", "int16", "int8", "uint8"):
        dtype = getattr(torch, name)
        limits = torch.iinfo(dtype)
        tensors[name] = torch.tensor([limits.min, 1, limits.max], dtype=dtype)
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{name}" for name in tensors}
    check(torch, saved(torch, tensors, tmp_path / "x.pth", form))


@pytest.mark.parametrize("form", FORMS)
def test_every_view_is_read_as_torch_reads_it(form, torch, tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        "base": base,
        "part": base[1:, ::2, 3],
        "transposed": base.permute(2, 0, 1),
        "diagonal": base[0].diagonal(),
        "scalar": torch.tensor(2.5),
        "scalar in it": base[2, 1, 3],
        "empty": torch.zeros(0, 3),
        "empty part": base[1:1],
        "half": base.half().permute(1, 0, 2),
        "brain": base.bfloat16()[:, 1:3],
        "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "tied": base,
    }
    check(torch, saved(torch, tensors, tmp_path / "x.pth", form))


@pytest.mark.parametrize("form", FORMS)
def test_state_dicts_parameters_and_metadata_are_read_as_torch_reads_them(form, torch, tmp_path):
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    tensors = layers.state_dict()
    assert tensors._metadata  # which pickles as BUILD
    check(torch, saved(torch, tensors, tmp_path / "x.pth", form))
    parameters = dict(layers.named_parameters())
    check(torch, saved(torch, parameters, tmp_path / "y.pth", form))
    checkpoint = {"epoch": 1, "state_dict": tensors, "optimizer": {"state": {0: {"step": 1}}}}
    read = torch_file.read(saved(torch, checkpoint, tmp_path / "z.pth", form))
    assert list(read) == list(tensors)


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_module_is_refused_by_the_name_of_its_class(form, torch, tmp_path):
    path = saved(torch, torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "x.pth", form)
    message = refusal(path)
    assert "torch.nn.modules.container.Sequential" in message and "state_dict()" in message


@pytest.mark.parametrize("value", ["list", "tensor", "mixed", "nothing"])
def test_what_is_no_state_dict_is_told(value, torch, tmp_path):
    ones = torch.ones(2)
    values = {"list": [ones], "tensor": ones, "mixed": {"w": ones, "step": 3}, "nothing": {}}
    message = refusal(saved(torch, values[value], tmp_path / "x.pth", "zip"))
    told = {"list": "a list", "tensor": "a tensor", "mixed": "step besides", "nothing": "nothing"}
    assert f"holds {told[value]}" in message


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "float8_e4m3fn"])
def test_types_that_no_network_here_has_are_refused(dtype, torch, tmp_path):
    value = {"w": torch.zeros(2, dtype=getattr(torch, dtype))}
    assert "is refused" in refusal(saved(torch, value, tmp_path / "x.pth", "zip"))


def test_another_magic_number_or_protocol_is_told(tmp_path):
    for at, wrong in ((0, MAGIC + 1), (1, PROTOCOL + 1)):
        heads = list(HEADS)
        heads[at] = pickle.dumps(wrong, 2)
        path = write(tmp_path / "x.pth", "stream", state_dict(w=tensor()), heads=heads)
        assert "another magic number or protocol" in refusal(path)


def test_a_storage_that_is_longer_than_was_said_is_told(tmp_path):
    path = write(tmp_path / "x.pth", "stream", state_dict(w=tensor()), {"0": STORED + STORED})
    assert "storage 0 has 12 numbers, not 6" in refusal(path)


def test_a_tensor_of_no_storage_is_told(tmp_path):
    path = write(tmp_path / "x.pth", "zip", state_dict(w=tensor(b"N")))
    assert "a tensor without a storage" in refusal(path)


def test_big_endian_is_told(tmp_path):
    path = write(tmp_path / "x.pth", "zip", state_dict(w=tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    assert "big endian" in refusal(path)
    heads = [*HEADS[:2], pickle.dumps({"little_endian": False}, 2)]
    path = write(tmp_path / "y.pth", "stream", state_dict(w=tensor()), heads=heads)
    assert "big endian" in refusal(path)


def test_torch_reads_the_files_made_by_hand(torch, tmp_path):
    """Each of which is refused above for one thing that is changed in it."""
    for form in FORMS:
        # the stream's storages could be views of others
        opcodes = state_dict(w=tensor(persistent(view=b"N" if form == "stream" else b"")))
        path = write(tmp_path / f"{form}.pth", form, opcodes)
        if form == "zip":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("archive/version", "3\n")
        check(torch, path)
