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
    unlike = arguments.keys() ^ {name for name, _ in kernel.parameters}
    if unlike:
        raise TypeError(f"{kernel.name}: parameters and arguments differ in {', '.join(sorted(unlike))}")
    packed: list[ctypes._SimpleCData] = []
    for name, kind in kernel.parameters:
        value, element = arguments[name], POINTERS.get(kind)
        if element is None and not isinstance(value, Tensor):
            packed.append(NUMBERS[kind](value))
        elif element is not None and value is None:
            packed.append(ctypes.c_void_p())
        elif isinstance(value, Tensor) and value.dtype == element and value.is_contiguous():
            packed.append(ctypes.c_void_p(value.data_ptr()))
        else:
            expected = "a number" if element is None else f"a contiguous tensor of {element}"
            raise TypeError(f"{kernel.name}: {name} is {expected}, got {getattr(value, 'dtype', type(value).__name__)}")
    return packed
