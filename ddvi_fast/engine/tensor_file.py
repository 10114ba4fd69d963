"""Writer of safetensors files that releases Python's global lock.

The library's own `save` makes the whole file in memory and holds the lock, so that training would stop while a thread writes. Here the lock
is free while bytes are hashed and written. Files are read by the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddvi_fast import _checks

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 1 << 20  # bytes, which are still in the cache when they are written after having been hashed


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write contiguous tensors of the CPU, wait until they are on the disk, and return the file's sha256.

    The format is https://github.com/huggingface/safetensors#format: the header's length in 8 bytes, a JSON header that says type, shape
    and place of each tensor, and their bytes.

    Raises:
        InputError: The format does not have the type of a tensor.
        OSError: The disk is full or not writable.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> path = Path(tempfile.mkdtemp()) / "w.safetensors"
        >>> len(write_tensors(path, {"w": torch.arange(3.0)}))
        64
        >>> load_file(path)
        {'w': tensor([0., 1., 2.])}
    """
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in _chunks(tensors):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    # The widest first, so that each lies at a multiple of its own width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, value in ordered:
        _checks.require(value.dtype in _TYPES, name, f"one of {', '.join(_TYPES.values())}", value)
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, value in ordered:
        data = value.reshape(-1).view(torch.uint8).numpy().data
        yield from (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
