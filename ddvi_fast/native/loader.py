"""Loader of the compiled library, and helpers for calls through ctypes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddvi_fast import _checks

LIBRARY = Path(__file__).resolve().parent.parent / "_native.so"
PRECISIONS = ("float32", "bf16")  # of a denoiser's hidden products
ISA_NAMES = ("portable", "avx2", "avx512", "avx512 with bf16 products")

_ABI_VERSION = 8


def available() -> tuple[bool, str]:
    """Whether the library can be used, and the reason if not."""
    return _open()[0] is not None, _open()[1]


def library() -> ctypes.CDLL:
    """The compiled library, opened at the first call.

    Raises:
        InputError: The library is missing or belongs to another version.
    """
    opened, reason = _open()
    if opened is None:
        _checks.fail("backend", "an installation with the compiled extension", "none", reason)
    return opened


def isa() -> str:
    """The instruction set in force; the environment variable `DDVI_FAST_ISA` (portable, avx2, avx512) lowers it."""
    return ISA_NAMES[library().ddvi_isa()]


def unusable(**tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot take these tensors, or None if they can: they take float32 on the CPU."""
    for name, value in tensors.items():
        if value is not None and value.device.type != "cpu":
            return f"{name}: the C++ kernels run on the CPU, got a tensor on {value.device}"
        if value is not None and value.dtype != torch.float32:
            return f"{name}: the C++ kernels are float32, got {str(value.dtype).removeprefix('torch.')}"
    return None


def position(state: Tensor | None, offset: int) -> tuple[int, int]:
    """Seed and first draw index, `offset` after `state`, int64 [2] on the CPU; zeros for None."""
    if state is None:
        return 0, 0
    seed, first_index = state.tolist()
    return seed % (1 << 64), first_index + offset


def pointer(value: Tensor | None) -> int | None:
    """The address of a contiguous tensor, None for None."""
    return None if value is None else value.data_ptr()


def fill(arguments: ctypes.Structure, names: Sequence[str], values: Sequence[Tensor | None]) -> None:
    """Set fields of a structure to the addresses of contiguous tensors, null for None."""
    for name, value in zip(names, values, strict=True):
        setattr(arguments, name, pointer(value))


def pointers(*values: Tensor | None) -> list[ctypes.c_void_p]:
    """Addresses of contiguous tensors as arguments of a call."""
    return [ctypes.c_void_p(pointer(value)) for value in values]


def integers(*values: int) -> list[ctypes.c_int64]:
    """64-bit arguments: ctypes would cut a plain Python number to 32 bits."""
    return [ctypes.c_int64(value) for value in values]


def unsigned(*values: int) -> list[ctypes.c_uint64]:
    """Unsigned 64-bit arguments."""
    return [ctypes.c_uint64(value) for value in values]


def number(value: float) -> ctypes.c_float:
    """A float32 argument."""
    return ctypes.c_float(value)


@functools.cache
def _open() -> tuple[ctypes.CDLL | None, str]:
    if not LIBRARY.is_file():
        return None, f"{LIBRARY.name} was not built: install with a C++17 compiler, or use the reference backend"
    try:
        opened = ctypes.CDLL(str(LIBRARY))
        version = opened.ddvi_abi_version()
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY.name} cannot be loaded: {str(error).splitlines()[0]}"
    opened.ddvi_mmd_sum.restype = ctypes.c_double
    if version != _ABI_VERSION:
        return None, f"{LIBRARY.name} belongs to another version of ddvi_fast: install ddvi_fast again"
    return opened, ""
