"""Reader of PyTorch checkpoints that does not execute anything in them.

A checkpoint is a zip archive with a pickle of its structure and the bytes of the tensors. A pickle is a program that may call any function
it names. Here every name except those that make tensors and dictionaries is replaced by an inert record of its arguments, so that even a
whole pickled module, whose classes this package does not have, yields its tensors and nothing else.
"""

from __future__ import annotations

import itertools
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ddvi_fast import _checks

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_BAD = (
    pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, MemoryError, OverflowError,
    RuntimeError, zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, struct.error,
)  # fmt: skip
# Limits, which no checkpoint of a network comes near: a small file can stand for any depth, number and size of what is read from it.
_DEPTH = 100  # containers within one another
_STEPS = 2_000_000  # operations of the pickle, and entries of all containers
_PLACES = 200_000  # containers and tensors, each of which counts wherever it appears
_NAME = 2_000  # characters of a tensor's name
_KEY = 1_000  # parts of a tuple, those of tuples within it included
_DIMENSIONS = 64
_EXPANSION = 16  # bytes of all tensors, of which several may share a storage, for each byte of the file
_SMALL = 1 << 24  # bytes of tensors that every file may have


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint onto the CPU, by dotted name.

    The file may contain a state dictionary, dictionaries and lists of them, optimizer states, or whole modules. Parameters and buffers of
    modules have the names of their state dictionary (`lin1.lin.weight`), after the keys of what contains them (`state_dict.lin1.lin.weight`).

    Args:
        path: File written by `torch.save` of PyTorch 1.6 or later.

    Raises:
        InputError: The file is missing, damaged or of another format, its pickle needs more than tensors and plain containers, or it stands for
            far more than a checkpoint holds.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"epoch": 3, "model": torch.nn.Linear(2, 1)}, file)
        >>> {name: list(tensor.shape) for name, tensor in read_checkpoint(file).items()}
        {'model.weight': [1, 2], 'model.bias': [1]}
    """
    path = Path(path)
    _checks.require(path.is_file(), "checkpoint", "a file", f"{path}, which is {'a folder' if path.exists() else 'missing'}")
    _checks.require(_is_zip(path), f"checkpoint {path}", "a zip archive, as torch.save writes since PyTorch 1.6", "another format")
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            _require(sum(entry.file_size for entry in archive.infolist()) <= size, f"contents larger than the file of {size} bytes")
            root = _structure(archive)
        return _Tensors(_SMALL + _EXPANSION * size).of(root)
    except _BAD as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        _checks.fail(f"checkpoint {path}", "tensors and plain containers, whole", f"{type(error).__name__}: {reason}")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, struct.error):  # of a damaged end
        return False


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise pickle.UnpicklingError(fault)


class _Record:
    """Inert replacement of an object: its arguments and its state."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Record:
        # Not in __init__, which a pickle need not call.
        record = super().__new__(cls)
        record.arguments, record.state = arguments, dict(named)
        return record

    def __setstate__(self, state: Any) -> None:
        # The state of an object with slots is a pair of dictionaries.
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, Mapping):
                self.state.update(part)

    def append(self, value: Any) -> None:
        self.arguments += (value,)

    def extend(self, values: Any) -> None:
        self.arguments += tuple(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def __hash__(self) -> int:
        return id(self)


class _Reader(pickle._Unpickler):  # the one in Python: that in C takes memory by the numbers in a file, and more of its stack for deeper tuples
    """Unpickler that makes only tensors, ordered dictionaries and records, within the limits."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        }
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and (module, name) not in known:
            raise pickle.UnpicklingError(f"a tensor of the unsupported kind {name}")
        return known.get((module, name), _Record)

    def persistent_load(self, pid: Any) -> Tensor:
        """Flat tensor of the storage `("storage", type, key, location, number of elements)`."""
        known = isinstance(pid, tuple) and len(pid) == 5 and isinstance(pid[1], torch.dtype)
        # Nothing of another type is printed: its text could be endless.
        _require(known and isinstance(pid[0], str) and pid[0] == "storage", "a storage of an unknown type")
        _, dtype, key, _, count = pid
        _require(isinstance(key, str) and isinstance(count, int), "a storage without name or size")
        return self._storage(key, dtype, count)


def _limited(read: Callable[[Any], None]) -> Callable[[Any], None]:
    """An operation of the pickle that counts, and whose result, if it is a tuple, is small: hashing and printing it takes as long as it is deep."""

    def step(reader: Any) -> None:
        reader.steps = getattr(reader, "steps", 0) + 1
        _require(reader.steps <= _STEPS, f"more than {_STEPS:,} operations")
        read(reader)
        made = reader.stack[-1] if reader.stack else None
        if type(made) is tuple:
            known = reader.__dict__.setdefault("sizes", {})
            if id(made) not in known:
                known[id(made)] = (made, 1 + sum(known.get(id(part), (None, 1))[1] for part in made))
            _require(known[id(made)][1] <= _KEY, f"a tuple of more than {_KEY:,} parts")

    return step


def _build(reader: Any) -> None:
    """Give a record its state; that of a dictionary or a tensor is dropped."""
    if isinstance(reader.stack[-2], _Record):
        reader.load_build()
    else:
        reader.stack.pop()


def _set(several: bool) -> Callable[[Any], None]:
    """Set entries of a dictionary or a record; a tensor would take what is set as an index."""

    def step(reader: Any) -> None:
        target = reader.metastack[-1][-1] if several else reader.stack[-3]
        _require(isinstance(target, (dict, _Record)), "entries of something else than a dictionary")
        (reader.load_setitems if several else reader.load_setitem)()

    return step


def _refused(reader: Any) -> None:
    _require(False, "an array of bytes")


_OWN = {pickle.BUILD[0]: _build, pickle.SETITEM[0]: _set(False), pickle.SETITEMS[0]: _set(True), pickle.BYTEARRAY8[0]: _refused}
_Reader.dispatch = {code: read if code == pickle.STOP[0] else _limited(_OWN.get(code, read)) for code, read in pickle._Unpickler.dispatch.items()}


def _structure(archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise pickle.UnpicklingError(f"{len(pickles)} files called data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise pickle.UnpicklingError("bytes in another order than little-endian")
    kept: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in kept:
            content = bytearray(archive.read(f"{folder}data/{key}"))
            kept[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype, device="cpu")
        if kept[key].dtype != dtype or len(kept[key]) < count:
            raise pickle.UnpicklingError(f"storage {key} of {len(kept[key])} elements, {count} named")
        return kept[key]

    with archive.open(pickles[0]) as file:
        return _Reader(file, storage).load()


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor within a storage, whose memory it shares; an error where it extends beyond it."""
    shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= _DIMENSIONS
    whole = shaped and isinstance(storage, Tensor) and all(type(number) is int for number in (offset, *size, *stride))
    _require(whole, "a tensor without storage, shape or strides")
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    inside = offset >= 0 and all(length >= 0 and step >= 0 for length, step in zip(size, stride, strict=True))
    if not inside or (0 not in size and reach >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {list(size)} beyond its storage of {len(storage)} elements")
    return storage.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Tensors:
    """Tensors within containers by dotted names, each with memory of its own, of `most` bytes in all."""

    def __init__(self, most: int) -> None:
        self._found: dict[str, Tensor] = {}
        self._most, self._bytes, self._places, self._entries = most, 0, 0, 0

    def of(self, root: Any) -> dict[str, Tensor]:
        """All tensors in `root`."""
        self._collect(root, "", ())
        return self._found

    def _collect(self, value: Any, name: str, above: tuple[int, ...]) -> None:
        """Add the tensors inside `value`; `above` has the ids of the enclosing containers."""
        if isinstance(value, Tensor):
            self._bytes += math.prod(value.shape) * value.element_size()
            _require(self._bytes <= self._most, f"tensors of more than {self._most:,} bytes")
            self._found[name] = value.clone()
        if not isinstance(value, (Mapping, list, tuple, _Record)) or id(value) in above:
            return
        _require(len(above) < _DEPTH, f"containers more than {_DEPTH} deep")
        self._places += 1
        _require(self._places <= _PLACES, f"more than {_PLACES:,} containers")
        for key, part in _parts(value):
            self._entries += 1
            _require(self._entries <= _STEPS, f"more than {_STEPS:,} entries")
            if isinstance(part, (Tensor, Mapping, list, tuple, _Record)):
                self._collect(part, _joined(name, key), (*above, id(value)))


def _joined(name: str, key: Any) -> str:
    _require(_simple(key), "a key that is no text or number")
    text = str(key)
    _require(len(name) + len(text) < _NAME, f"a name of more than {_NAME:,} characters")
    return f"{name}.{text}" if name else text


def _simple(key: Any) -> bool:
    return key is None or isinstance(key, (str, bytes, int, float)) or (isinstance(key, tuple) and all(map(_simple, key)))


def _parts(container: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and entries of a container."""
    if isinstance(container, _Record):
        if isinstance(container.state.get("_parameters"), Mapping):
            return iter(_module_parts(container))
        return itertools.chain(container.state.items(), enumerate(container.arguments))
    return iter(container.items() if isinstance(container, Mapping) else enumerate(container))


def _module_parts(module: _Record) -> list[tuple[Any, Any]]:
    """Parameters, persistent buffers and children of a pickled module."""
    left_out = module.state.get("_non_persistent_buffers_set", ())
    left_out = left_out.arguments[0] if isinstance(left_out, _Record) and left_out.arguments else left_out
    left_out = left_out if isinstance(left_out, (set, frozenset, list, tuple)) else ()
    groups = [module.state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    parameters, buffers, children = (group if isinstance(group, Mapping) else {} for group in groups)
    return [*parameters.items(), *((name, value) for name, value in buffers.items() if name not in left_out), *children.items()]
