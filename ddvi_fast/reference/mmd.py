"""Maximum mean discrepancy with a sum of Gaussian kernels (Gretton et al. 2012, biased estimate)."""

from __future__ import annotations

import torch
from torch import Tensor

_PAIRS = 1 << 22  # most pairs of rows in memory


def mmd(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """Square root of the biased estimate between `x` [N, P] and `y` [M, P], kernel `sum_s exp(-|x - y|^2 / (2 s))`."""
    squared = _mean_kernel(x, x, sigmas) + _mean_kernel(y, y, sigmas) - 2 * _mean_kernel(x, y, sigmas)
    # Rounding can make the squared discrepancy of equal sets negative; at 0 the root has no finite gradient.
    zero = squared <= 0  # NaN is not
    return torch.where(zero, 1.0, squared).sqrt() * ~zero


def _mean_kernel(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    rows = max(1, _PAIRS // max(1, y.shape[0]))
    total = sum(_kernel_sum(block, y, sigmas) for block in x.split(rows))
    return total / (x.shape[0] * y.shape[0])


def _kernel_sum(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    products = x @ y.mT
    squared = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * products
    squared = torch.where(squared < 0, 0.0, squared)  # the derivative of a clamp is 0 at NaN
    return sum(torch.exp(squared / (-2 * sigma)).sum() for sigma in sigmas)
