"""Reader of PyTorch checkpoints that does not execute anything in them.

A checkpoint is a zip archive with a pickle of its structure and the bytes of the tensors. A pickle is a program that may call any function
it names. Here every name except those that make tensors and dictionaries is replaced by an inert record of its arguments, so that even a
whole pickled module, whose classes this package does not have, yields its tensors and nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
_BAD = (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, MemoryError, OverflowError)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint onto the CPU, by dotted name.

    The file may contain a state dictionary, dictionaries and lists of them, optimizer states, or whole modules. Parameters and buffers of
    modules have the names of their state dictionary (`lin1.lin.weight`), after the keys of what contains them (`state_dict.lin1.lin.weight`).

    Args:
        path: File written by `torch.save` of PyTorch 1.6 or later.

    Raises:
        InputError: The file is missing, damaged or of another format, or its pickle needs more than tensors and plain containers.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"epoch": 3, "model": torch.nn.Linear(2, 1)}, file)
        >>> {name: list(tensor.shape) for name, tensor in read_checkpoint(file).items()}
        {'model.weight': [1, 2], 'model.bias': [1]}
    """
    path = Path(path)
    _checks.require(path.is_file(), "checkpoint", "a file", f"{path}, which is {'a folder' if path.exists() else 'missing'}")
    _checks.require(zipfile.is_zipfile(path), f"checkpoint {path}", "a zip archive, as torch.save writes since PyTorch 1.6", "another format")
    try:
        with zipfile.ZipFile(path) as archive:
            root = _structure(archive)
    except (*_BAD, zipfile.BadZipFile, OSError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        _checks.fail(f"checkpoint {path}", "tensors and plain containers, whole", f"{type(error).__name__}: {reason}")
    tensors: dict[str, Tensor] = {}
    _collect(root, "", tensors, set())
    return tensors


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


class _Reader(pickle.Unpickler):
    """Unpickler that makes only tensors, ordered dictionaries and records."""

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
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"a storage of an unknown type, {pid!r:.80}")
        return self._storage(str(key), dtype, int(count))


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
            kept[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if kept[key].dtype != dtype or len(kept[key]) < count:
            raise pickle.UnpicklingError(f"storage {key} of {len(kept[key])} elements, {count} named")
        return kept[key]

    with archive.open(pickles[0]) as file:
        return _Reader(file, storage).load()


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor within a storage; an error where it extends beyond it."""
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    inside = offset >= 0 and all(length >= 0 and step >= 0 for length, step in zip(size, stride, strict=True))
    if not inside or (0 not in size and reach >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {list(size)} beyond its storage of {len(storage)} elements")
    return storage.as_strided(size, stride, offset).clone()


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _collect(value: Any, name: str, found: dict[str, Tensor], seen: set[int]) -> None:
    """Add the tensors inside `value` to `found` by dotted names; `seen` has the ids of the enclosing containers."""
    if isinstance(value, Tensor):
        found[name] = value
    if not isinstance(value, (Mapping, list, tuple, _Record)) or id(value) in seen:
        return
    above = seen | {id(value)}
    if isinstance(value, _Record):
        parts = _module_parts(value) if "_parameters" in value.state else [*value.state.items(), *enumerate(value.arguments)]
    else:
        parts = list(value.items() if isinstance(value, Mapping) else enumerate(value))
    for key, part in parts:
        _collect(part, f"{name}.{key}" if name else str(key), found, above)


def _module_parts(module: _Record) -> list[tuple[Any, Any]]:
    """Parameters, persistent buffers and children of a pickled module."""
    left_out = module.state.get("_non_persistent_buffers_set", ())
    left_out = left_out.arguments[0] if isinstance(left_out, _Record) and left_out.arguments else left_out
    buffers = [(name, value) for name, value in module.state.get("_buffers", {}).items() if name not in left_out]
    return [*module.state["_parameters"].items(), *buffers, *module.state.get("_modules", {}).items()]
