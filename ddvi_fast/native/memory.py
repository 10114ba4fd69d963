"""Memory that is used again: what comes fresh from the system costs a page fault every 4 KiB, as much as filling it a few times over."""

from __future__ import annotations

import math
import sys
import threading
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST, LARGEST = 1 << 18, 1 << 25  # bytes: malloc keeps smaller blocks by itself, and larger ones are too much to hold on to
KEPT = 64  # blocks of one size, more than a training step has alive

_ALIGNMENT = 64
_blocks: dict[int, list[np.ndarray]] = defaultdict(list)
_lock = threading.Lock()
# What refers to a block that no tensor stands in: its list, the loop's variable, and the argument of the question.
_IDLE = 3


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
    with _lock:
        return torch.from_numpy(_idle_block(size)).view(shape)


def _idle_block(size: int) -> np.ndarray:
    blocks = _blocks[size]
    for block in blocks:
        if sys.getrefcount(block) == _IDLE:
            return block
    block = _aligned(size)
    if len(blocks) < KEPT:
        blocks.append(block)
    return block


def _aligned(size: int) -> np.ndarray:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(np.float32)
