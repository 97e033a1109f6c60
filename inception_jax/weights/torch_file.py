"""PyTorch's files of tensors (.pth, .pt), read without PyTorch and without running what they say.

A pickle names functions for its reader to call. Here it may name a few stand-ins only, which make
tuples; the tuples become arrays afterwards, once every number in them is checked. Both formats of
torch.save: the zip archive since 1.6 (data.pkl, and a file for each storage), and the stream
before (pickles, then the storages), in which torchvision's older files are.

Pickles run in a machine of our own, which knows no other calls: Python's hashes what a pickle nests
as deep as it likes, which overflows the stack, or takes for ever, before any check of ours.
"""

import functools
import io
import math
import mmap
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


def _rebuild_tensor(storage, offset, size, stride, *_):
    if type(storage) is not _Storage:
        raise ValueError("a tensor without a storage")
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor, *_):
    return tensor


def _ordered_dict(pairs=()):
    made = {}
    for key, value in pairs:
        _set(made, key, value)
    return made


def _set(made, key, value):
    if type(made) is not dict or type(key) not in (str, int):
        raise ValueError(f"a {type(key).__name__} as key in a {type(made).__name__}")
    made[key] = value


STAND_INS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): dtype for name, dtype in DTYPES.items()}


class _Pickle:
    """The next pickle of a file: `value`, and the `storages` that it names, by key."""

    def __init__(self, path: Path, file: io.BytesIO | mmap.mmap):
        self._path = path
        self._stack, self._marks, self._memo = [], [], {}
        self.storages: dict[str, _Storage] = {}
        for opcode, argument, _ in pickletools.genops(file):
            self._run(opcode.name, argument)
        (self.value,) = self._stack

    def _run(self, name, argument):  # noqa: PLR0912  an opcode a case
        """Of protocol 2, as far as state dicts need it; nothing makes an object of a class."""
        stack = self._stack
        match name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._marked()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._marked()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(stack[-1], key, value)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._stand_in(argument))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(function(*arguments))
            case "BUILD":  # what an OrderedDict has beside its items: versions of modules
                self._pop(1)
            case "BINPERSID":
                stack.append(self._storage(*self._pop(1)))
            case _:
                raise UserError(
                    f"{self._path} is refused: its pickle has {name}, which tensors do not need;"
                    f" {ADVICE}, unless it is damaged"
                )

    def _pop(self, number):
        if len(self._stack) < number:
            raise ValueError("a pickle that takes more than it has")
        items = self._stack[-number:]
        del self._stack[-number:]
        return items

    def _marked(self):
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _stand_in(self, argument):
        module, name = argument.split(" ", 1)
        if (module, name) not in STAND_INS:
            raise UserError(
                f"{self._path} is refused: it asks for {_told(f'{module}.{name}')} to be run, and"
                f" holds more than tensors; {ADVICE}"
            )
        return STAND_INS[module, name]

    def _storage(self, pid):
        kind, dtype, key, _, count, *view = pid
        known = kind == "storage" and dtype in DTYPES.values() and not any(view)
        if not known or type(count) is not int:
            raise ValueError("what is no storage where one belongs")
        storage = _Storage(dtype, _string(key), count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two storages {key}")
        return storage


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, alone or as training scripts wrap it.

    Args:
      path: of a file from torch.save.

    Returns:
      Arrays by name, not to be written to; those of 16-bit floats as float32.

    Raises:
      UserError: the file is damaged, holds anything but tensors, or wants something run.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        value, content = _read_zip(path) if is_zip else _read_stream(path)
        flat = functools.cache(lambda storage: _flat(storage, content(storage)))
        return {name: _array(each, flat) for name, each in _state_dict(path, value).items()}
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise UserError(
            f"{path} is damaged or cut short, or not a file of torch.save"
            f" ({_told(error) or type(error).__name__})"
        ) from None


def _read_zip(path):
    archive = zipfile.ZipFile(path)
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    root = pickled.removesuffix("data.pkl")
    if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
        raise ValueError("its parts are larger than the whole")

    def content(name):
        if archive.getinfo(root + name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return archive.read(root + name)

    if root + "byteorder" in archive.namelist() and content("byteorder") != b"little":
        raise UserError(f"{path} was saved in big endian: save it again on a common machine")
    pickle = _Pickle(path, io.BytesIO(content("data.pkl")))
    return pickle.value, lambda storage: content(f"data/{storage.key}")


def _read_stream(path):
    with (
        open(path, "rb") as opened,
        # a read of it asks for no more memory than there is left to read
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file,
    ):
        if (_Pickle(path, file).value, _Pickle(path, file).value) != (MAGIC, PROTOCOL):
            raise ValueError("another magic number or protocol")
        if not _Pickle(path, file).value["little_endian"]:
            raise UserError(f"{path} was saved in big endian: save it again on a common machine")
        pickle = _Pickle(path, file)
        contents = {}
        for key in _Pickle(path, file).value:
            storage = pickle.storages[_string(key)]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.count:
                raise ValueError(f"storage {key} has {count} numbers, not {storage.count}")
            contents[key] = file.read(count * _itemsize(storage))
    return pickle.value, lambda storage: contents[storage.key]


def _state_dict(path, value):
    if isinstance(value, dict):
        value = next((value[w] for w in WRAPPERS if isinstance(value.get(w), dict)), value)
    if not isinstance(value, dict):
        what = "tensor" if isinstance(value, _Tensor) else type(value).__name__
        raise UserError(f"{path} holds a {what}, not a state dict")
    others = [
        name
        for name, each in value.items()
        if not (isinstance(each, _Tensor) and isinstance(name, str) and name.isprintable())
    ]
    if others or not value:
        told = ", ".join(_told(name) for name in others[:5]) or "nothing"
        raise UserError(f"{path} holds {told} besides tensors: save model.state_dict() alone")
    if all(name.startswith(PARALLEL) for name in value):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in value.items()}
    return dict(value)


def _flat(storage: _Storage, content: bytes) -> np.ndarray:
    """All numbers of a storage."""
    if len(content) != storage.count * _itemsize(storage):
        raise ValueError(f"storage {storage.key} has {len(content)} bytes")
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    flat = np.frombuffer(content, storage.dtype)
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def _array(tensor: _Tensor, flat: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    """What a tensor sees of its storage; raises ValueError where that is not inside.

    Without copies: a file may name one storage any number of times.
    """
    storage, offset, size, stride = tensor
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor without a place in a storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.count or (math.prod(size) and last >= storage.count):
        raise ValueError(f"tensor beyond its storage: {tensor}")
    numbers = flat(storage)
    if not math.prod(size):
        return np.zeros(size, numbers.dtype)
    strides = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, strides, writeable=False)


def _itemsize(storage):
    return 2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize


def _string(key):
    if type(key) is not str:
        raise ValueError(f"a {type(key).__name__} as name of a storage")
    return key


def _told(what):
    line = " ".join(str(what).split())[:200]
    return "".join(char if char.isprintable() else "?" for char in line)
