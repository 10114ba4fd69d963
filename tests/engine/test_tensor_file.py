"""Tensors written from their memory are what the library reads, and writes."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors import torch as safetensors

from ddvi_fast._checks import InputError
from ddvi_fast.engine import tensor_file
from ddvi_fast.engine.tensor_file import write_tensors

TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool
)  # fmt: skip


@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_the_library_reads_every_type_and_shape(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tensor_file, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    tensors = {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 5), 'é/"name': torch.ones(1)}
    tensors |= {str(dtype): torch.randint(-3, 100, (3, 7), generator=generator).to(dtype) for dtype in TYPES}
    digest = write_tensors(tmp_path / "file", tensors)
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    found = safetensors.load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def test_the_contents_are_those_that_the_library_writes(tmp_path):
    """Header for header, whose spaces are free, and byte for byte after it."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.float16), "c": torch.tensor(4, dtype=torch.int64)}
    write_tensors(tmp_path / "ours", tensors)
    safetensors.save_file(tensors, tmp_path / "theirs")
    headers, bodies = zip(*(split((tmp_path / name).read_bytes()) for name in ("ours", "theirs")), strict=True)
    assert headers[0].replace(b" ", b"") == headers[1].replace(b" ", b"") and bodies[0] == bodies[1]
    assert all(len(header) % 8 == 0 for header in headers)


def split(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def test_a_type_without_a_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^z: expected one of F64, [^\n]*complex128"):
        write_tensors(tmp_path / "file", {"z": torch.zeros(2, dtype=torch.complex128)})
