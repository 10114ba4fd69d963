"""Memory that is used again: what comes fresh from the system costs a page fault every 4 KiB, as much as filling it a few times over."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST, LARGEST = 1 << 18, 1 << 25  # bytes: malloc keeps smaller blocks by itself, and larger ones are too much to hold on to
KEPT = 64  # idle blocks of one size, more than a training step has

_ALIGNMENT = 64
_idle: dict[int, list[np.ndarray]] = defaultdict(list)


def empty(*shape: int) -> Tensor:
    """An uninitialised float32 tensor on the CPU, in memory that an earlier one has left where there is some.

    Example:
        >>> first = empty(512, 512)
        >>> place = first.data_ptr()
        >>> del first
        >>> empty(512, 512).data_ptr() == place
        True
    """
    size = 4 * math.prod(shape)
    if not SMALLEST <= size <= LARGEST:
        return torch.empty(shape)
    try:
        block = _idle[size].pop()
    except IndexError:
        block = _aligned(size)
    # The tensor's storage, however many tensors share it, holds on to this array, and its end sends the block back.
    handed = block.view()
    weakref.finalize(handed, _take_back, size, block).atexit = False
    return torch.from_numpy(handed).view(shape)


def release() -> None:
    """Give idle memory back to the system."""
    _idle.clear()


def _take_back(size: int, block: np.ndarray) -> None:
    if len(_idle[size]) < KEPT:
        _idle[size].append(block)


def _aligned(size: int) -> np.ndarray:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(np.float32)
