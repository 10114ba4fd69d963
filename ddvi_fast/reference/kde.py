"""Gaussian kernel density at several bandwidths, averaged in probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS = 1 << 22  # most pairs of points in memory


def kde_log_density(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float | None) -> Tensor:
    """Log-density [N] at `z` [N, D] under kernels on `points` [M, D]; `clamp` clips each bandwidth's value first."""
    rows = max(1, _PAIRS // max(1, points.shape[0]))
    return torch.cat([_block(block, points, bandwidths, clamp) for block in z.split(rows)])


def _block(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float | None) -> Tensor:
    squared = (z.unsqueeze(1) - points).square().sum(-1)
    constant = math.log(points.shape[0]) + 0.5 * z.shape[-1] * math.log(2 * math.pi)
    each = torch.stack([torch.logsumexp(squared / (-2 * h * h), 1) - z.shape[-1] * torch.log(h) - constant for h in bandwidths])
    if clamp is not None:
        each = each.clamp(-clamp, clamp)
    return torch.logsumexp(each, 0) - math.log(len(bandwidths))
