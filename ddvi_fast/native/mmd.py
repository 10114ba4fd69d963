"""Maximum mean discrepancy in C++: tiles of products that stay in cache; memory is linear in the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast.native import loader

_MOST_WIDTHS = 64


def unsupported(*, x: Tensor, y: Tensor, sigmas: Tensor) -> str | None:
    """The reason why the kernel cannot compute this discrepancy, or None if it can."""
    reason = loader.unusable(x=x, y=y, sigmas=sigmas)
    if reason is None and len(sigmas) > _MOST_WIDTHS:
        return f"sigmas: the C++ discrepancy takes up to {_MOST_WIDTHS} widths, got {len(sigmas)}"
    return reason


def forward(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """`reference.mmd.mmd` between `x` [N, P] and `y` [M, P]: sums in float64, as three nearly equal ones cancel."""
    n, m = len(x), len(y)
    squared = _sum(x, x, sigmas) / (n * n) + _sum(y, y, sigmas) / (m * m) - 2 * _sum(x, y, sigmas) / (n * m)
    # Rounding can make the squared discrepancy of equal sets negative.
    return x.new_tensor(math.sqrt(0.0 if squared < 0 else squared))  # NaN stays NaN, as it would not in a maximum


def backward(x: Tensor, y: Tensor, sigmas: Tensor, value: Tensor, upstream: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of x and y under a scalar `upstream`, None where not needed, and zero where the discrepancy is 0."""
    root = torch.where(value == 0, 0.0, 0.5 * upstream / value)
    return [_gradient(x, y, sigmas) * root if needed[0] else None, _gradient(y, x, sigmas) * root if needed[1] else None]


def _gradient(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """Gradient of the squared discrepancy with respect to its first set."""
    out = torch.zeros_like(x)
    _add_gradient(x, x, sigmas, 2 / (len(x) * len(x)), out)
    _add_gradient(x, y, sigmas, -2 / (len(x) * len(y)), out)
    return out


def _sum(x: Tensor, y: Tensor, sigmas: Tensor) -> float:
    return loader.library().ddvi_mmd_sum(*_operands(x, y, sigmas))


def _add_gradient(x: Tensor, y: Tensor, sigmas: Tensor, factor: float, out: Tensor) -> None:
    loader.library().ddvi_mmd_gradient(*_operands(x, y, sigmas), loader.number(factor), *loader.pointers(out))


def _operands(x: Tensor, y: Tensor, sigmas: Tensor) -> list:
    sizes = loader.integers(len(x), len(y), x.shape[1], len(sigmas), torch.get_num_threads())
    addresses = loader.pointers(x, y, sigmas)
    return [addresses[0], sizes[0], addresses[1], sizes[1], sizes[2], addresses[2], *sizes[3:]]
