"""An order of points in which neighbours in space are neighbours in memory."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 10  # a coordinate's cells: 1,024
_COORDINATES = 3  # the first ones, which a prior of few dimensions has


def along_curve(points: Tensor) -> Tensor:
    """The order, int64 [M], of `points` [M, D] along a Z-shaped curve through cells of their first coordinates (Morton 1966).

    A kernel on a block of consecutive points then reaches few places, and is zero at most others.

    Example:
        >>> along_curve(torch.tensor([[0.0], [2.0], [1.0]])).tolist()
        [0, 2, 1]
    """
    some = points[:, :_COORDINATES]
    low, high = torch.aminmax(some, dim=0)
    cells = ((some - low) / (high - low).clamp(min=1e-12) * ((1 << _BITS) - 1)).long()
    code = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for bit in range(_BITS):
        for place, cell in enumerate(cells.unbind(1)):
            code |= ((cell >> bit) & 1) << (bit * cells.shape[1] + place)
    return torch.argsort(code, stable=True)
