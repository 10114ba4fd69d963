"""Order of the examples in an epoch: a function of seed and epoch alone, computed on the device of the data.

Epoch `e` of seed `s` orders the examples by the words of draws `e * 2^32 + i` of the `ORDER` stream. Nothing is carried
from one epoch to the next, so a resumed run, or one with more processes, uses the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ddvi_fast import _checks, rng

_EPOCH_BITS = 32  # an epoch has 2^32 draws, one per example


def epoch_order(size: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Order of `size` examples in `epoch`, int64 [size]: the same on every device and in every process."""
    size, epoch = _checks.integer(size, "size", 1, 1 << _EPOCH_BITS), _checks.integer(epoch, "epoch", 0, 1 << 30)
    return rng.permutation(rng.Draws(seed, epoch << _EPOCH_BITS), size, device)


def num_batches(size: int, batch_size: int, drop_last: bool = True) -> int:
    """Number of batches in an epoch of `size` examples.

    Raises:
        InputError: `batch_size` is below 1 or above `size`.

    Example:
        >>> num_batches(1400, 128), num_batches(1400, 128, drop_last=False)
        (10, 11)
    """
    size, batch_size = _checks.integer(size, "size", 0), _checks.integer(batch_size, "batch_size", 1)
    _checks.require(batch_size <= size, "batch_size", f"an integer from 1 to {size}, the number of examples", batch_size)
    return size // batch_size if drop_last else -(-size // batch_size)


def epoch_batches(size: int, batch_size: int, seed: int, epoch: int, device: torch.device | str = "cpu", drop_last: bool = True) -> Iterator[Tensor]:
    """Indices of the batches of one epoch, int64 [batch_size] each, views of one order made on `device`.

    With `drop_last` the last ``size % batch_size`` examples of the order are left out, so that all batches have one shape (which
    captured graphs need); without it the last batch is shorter.

    Raises:
        InputError: `batch_size` is below 1 or above `size`; `epoch` or `seed` is out of range. The call raises it, not the iteration.

    Example:
        >>> [len(batch) for batch in epoch_batches(10, 4, seed=0, epoch=0, drop_last=False)]
        [4, 4, 2]
    """
    used = min(size, num_batches(size, batch_size, drop_last) * batch_size)
    return iter(epoch_order(size, seed, epoch, device)[:used].split(batch_size))
