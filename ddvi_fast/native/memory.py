"""Reuse of CPU memory: new memory from the system costs a page fault every 4 KiB, as much as filling it a few times."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST, LARGEST = 1 << 18, 1 << 25  # bytes: malloc keeps smaller blocks by itself, and larger ones would take too much memory
KEPT = 64  # most idle blocks of one size, more than a training step needs

_ALIGNMENT = 64
_idle: dict[int, list[np.ndarray]] = defaultdict(list)


def empty(*shape: int) -> Tensor:
    """An uninitialized float32 tensor on the CPU, in memory of an earlier tensor of that size if one is free.

    Example:
        >>> first = empty(512, 512)
        >>> place = first.data_ptr()
        >>> del first
        >>> empty(512, 512).data_ptr() == place
        True
    """
    size = 4 * math.prod(shape)
    if not SMALLEST <= size <= LARGEST:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    try:
        block = _idle[size].pop()
    except IndexError:
        block = _aligned(size)
    # All tensors that share the storage keep this array alive; when it is collected, the block becomes idle again.
    handed = block.view()
    weakref.finalize(handed, _take_back, size, block).atexit = False
    return torch.from_numpy(handed).view(shape)


def release() -> None:
    """Return idle memory to the system."""
    _idle.clear()


def _take_back(size: int, block: np.ndarray) -> None:
    if len(_idle[size]) < KEPT:
        _idle[size].append(block)


def _aligned(size: int) -> np.ndarray:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(np.float32)
