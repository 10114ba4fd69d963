"""Order of points along a space-filling curve, which makes kernel density estimates faster."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 10  # bits of a cell's coordinate
_COORDINATES = 3  # number of coordinates that determine the order, the first ones


def along_curve(points: Tensor) -> Tensor:
    """Return the order, int64 [M], of `points` [M, D] along a Z-order curve of their first coordinates (Morton 1966).

    Consecutive points are then close in space, so a kernel on a block of points is zero almost everywhere else.

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
