"""Launches on torch's current stream."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ddvi_fast.cuda.driver import driver
from ddvi_fast.cuda.module import NUMBERS, POINTERS, Kernel, Variant, function


def launch(variant: Variant, device: torch.device, grid: tuple[int, int], shared: int, **arguments: Any) -> None:
    """Launch a kernel on the current stream of `device`; a grid without programs launches nothing.

    Args:
        variant: The kernel, with its macros.
        device: Device of its tensors.
        grid: Number of programs along x and y.
        shared: Bytes of dynamic shared memory of a program.
        arguments: Every parameter of the kernel by name: contiguous tensors, None for a null pointer, numbers.
    """
    if 0 in grid:
        return
    packed, index = pack(variant.kernel, arguments), device.index if device.index is not None else torch.cuda.current_device()
    with torch.cuda.device(index):
        stream = torch.cuda.current_stream().cuda_stream
        driver().launch(function(variant, index), (*grid, 1), variant.threads, shared, stream, packed)


def pack(kernel: Kernel, arguments: dict[str, Any]) -> list[ctypes._SimpleCData]:
    """The arguments in the order and with the types of the kernel's parameters.

    Raises:
        TypeError: An argument is missing, unknown or of another type.
    """
    names = [name for name, _ in kernel.parameters]
    if set(names) != set(arguments):
        raise TypeError(f"{kernel.name}: parameters and arguments differ in {', '.join(sorted(set(names) ^ set(arguments)))}")
    return [_packed(f"{kernel.name}: {name}", kind, arguments[name]) for name, kind in kernel.parameters]


def _packed(what: str, kind: str, value: Any) -> ctypes._SimpleCData:
    if kind in NUMBERS:
        if isinstance(value, Tensor):
            raise TypeError(f"{what} is a number, got a tensor")
        return NUMBERS[kind](value)
    if value is None:
        return ctypes.c_void_p()
    if not isinstance(value, Tensor) or value.dtype != POINTERS[kind] or not value.is_contiguous():
        raise TypeError(f"{what} is a contiguous tensor of {POINTERS[kind]}, got {getattr(value, 'dtype', type(value).__name__)}")
    return ctypes.c_void_p(value.data_ptr())
