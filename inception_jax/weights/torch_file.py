"""PyTorch's files of tensors (.pth, .pt), read without PyTorch and without running what they say.

A pickle names functions for its reader to call. Here it may name a few stand-ins only, which make
tuples; the tuples become arrays afterwards, once every number in them is checked. Both formats of
torch.save: the zip archive since 1.6 (data.pkl, and a file for each storage), and the stream
before (pickles, then the storages), in which torchvision's older files are.
"""

import collections
import functools
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inception_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, as the protocol
PROTOCOL = 1001
DTYPES = {  # of storages, in little endian
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
# Of protocol 2, as far as state dicts need them; none makes an object of a class.
OPCODES = """
  PROTO STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS
  SETITEM SETITEMS NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
  BINSTRING SHORT_BINSTRING BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD BINPERSID
"""
MOST_TUPLES = 10_000  # four a tensor; hashing one in another, and so on, would end in a crash
WRAPPERS = ("state_dict", "model")  # where training scripts put the state dict
ADVICE = "save model.state_dict() with torch.save, and take that file"
PARALLEL = "module."  # before all names, of nn.DataParallel


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Rebuild:
    """Stands for torch._utils._rebuild_tensor_v2, and for that without its last arguments."""

    __slots__ = ()  # nothing that a pickle could set

    def __call__(self, storage, offset, size, stride, *_):
        return _Tensor(storage, offset, size, stride)


class _Parameter:
    """Stands for torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class _Unpickler(pickle.Unpickler):
    """Knows the names in a state dict; `storages` are those that were named.

    Reads the next pickle of a file, after a look at its opcodes: damaged ones can ask for any
    amount of memory.
    """

    def __init__(self, path, file):
        self._path = path
        self.storages: dict[str, _Storage] = {}
        allowed = set(OPCODES.split())
        start, tuples = file.tell(), 0
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "GLOBAL":
                self.find_class(*argument.split(" ", 1))
            if opcode.name not in allowed:
                raise UserError(
                    f"{path} is refused: its pickle has {opcode.name}, which tensors do not need;"
                    f" {ADVICE}, unless it is damaged"
                )
            tuples += opcode.name.startswith("TUPLE")
            if tuples > MOST_TUPLES:
                raise ValueError(f"more than {MOST_TUPLES:,} tuples")
            if opcode.name.endswith("PUT") and argument > number:
                raise ValueError(f"{opcode.name} {argument}")
        end = file.tell()
        file.seek(start)
        super().__init__(io.BytesIO(file.read(end - start)), encoding="utf-8")

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _Parameter()
        raise UserError(
            f"{self._path} is refused: it asks for {module}.{name} to be run, and holds more than"
            f" tensors; {ADVICE}"
        )

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or dtype not in DTYPES.values() or any(view):
            raise ValueError(f"no storage: {pid}")
        storage = _Storage(dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two storages {key}")
        return storage


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, alone or as training scripts wrap it.

    Args:
      path: of a file from torch.save.

    Returns:
      Arrays by name, those of 16-bit floats as float32.

    Raises:
      UserError: the file is damaged, holds anything but tensors, or wants something run.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        value, array = _read_zip(path) if is_zip else _read_stream(path)
        tensors = _state_dict(path, value)
        return {name: array(tensor) for name, tensor in tensors.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise UserError(
            f"{path} is damaged or cut short, or not a file of torch.save ({_told(error)})"
        ) from None


def _read_zip(path):
    archive = zipfile.ZipFile(path)
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    root = pickled.removesuffix("data.pkl")

    @functools.cache
    def content(name):
        if archive.getinfo(root + name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return archive.read(root + name)

    if root + "byteorder" in archive.namelist() and content("byteorder") != b"little":
        raise UserError(f"{path} was saved in big endian: save it again on a common machine")
    value = _Unpickler(path, io.BytesIO(content("data.pkl"))).load()
    return value, functools.partial(_array, data=lambda storage: content(f"data/{storage.key}"))


def _read_stream(path):
    size = path.stat().st_size
    with open(path, "rb") as file:
        unpickler = functools.partial(_Unpickler, path, file)
        if (unpickler().load(), unpickler().load()) != (MAGIC, PROTOCOL):
            raise ValueError("another magic number or protocol")
        if not unpickler().load()["little_endian"]:
            raise UserError(f"{path} was saved in big endian: save it again on a common machine")
        holder = unpickler()
        value = holder.load()
        contents = {}
        for key in unpickler().load():
            storage = holder.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.count or not 0 <= count <= size:
                raise ValueError(f"storage {key} has {count} numbers, not {storage.count}")
            contents[key] = file.read(count * _itemsize(storage))
    return value, functools.partial(_array, data=lambda storage: contents[storage.key])


def _state_dict(path, value):
    if isinstance(value, dict):
        value = next((value[w] for w in WRAPPERS if isinstance(value.get(w), dict)), value)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a state dict")
    others = [name for name, each in value.items() if not isinstance(each, _Tensor)]
    if others or not value:
        told = ", ".join(map(str, others[:5])) or "nothing"
        raise UserError(f"{path} holds {told} besides tensors: save model.state_dict() alone")
    if all(name.startswith(PARALLEL) for name in value):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in value.items()}
    return dict(value)


def _array(tensor: _Tensor, data: Callable[[_Storage], bytes]) -> np.ndarray:
    """The part of a storage that a tensor sees; raises ValueError where that is not inside."""
    storage, offset, size, stride = tensor
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"no place in a storage: {tensor}")
    content = data(storage)
    if len(content) != storage.count * _itemsize(storage):
        raise ValueError(f"storage {storage.key} has {len(content)} bytes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.count or (math.prod(size) and last >= storage.count):
        raise ValueError(f"tensor beyond its storage: {tensor}")
    narrow = storage.dtype == "bfloat16"
    flat = np.frombuffer(content, "<u2" if narrow else storage.dtype)
    if narrow:  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    elif flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    strides = [step * flat.itemsize for step in stride]
    if not math.prod(size):
        return np.zeros(size, flat.dtype)
    # no copy: a pickle may name one tensor any number of times
    return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False)


def _itemsize(storage):
    return 2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize


def _told(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
