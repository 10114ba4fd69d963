"""Kernel density in C++: every bandwidth in one pass of distances, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast.native import loader

_MOST_BANDWIDTHS, _MOST_DIMENSIONS = 64, 4096


def unsupported(*, z: Tensor, points: Tensor, bandwidths: Tensor) -> str | None:
    """The reason why the kernel cannot compute this density, or None if it can."""
    reason = loader.unusable(z=z, points=points, bandwidths=bandwidths)
    if reason is None and (len(bandwidths) > _MOST_BANDWIDTHS or z.shape[-1] > _MOST_DIMENSIONS):
        return f"bandwidths, z: the C++ density takes up to {_MOST_BANDWIDTHS} bandwidths and {_MOST_DIMENSIONS} dimensions"
    return reason


def forward(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float, powers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """`reference.kde.kde_log_density` [N] at `z` [N, D] under kernels on `points` [M, D], and each bandwidth's value [N, S] before clamping.

    `powers` says which kernels are powers of others; here each has its own exponential.
    """
    columns = points.mT.contiguous()
    each = z.new_empty((len(z), len(bandwidths)))
    loader.library().ddvi_kde_forward(*_sizes(z, columns, bandwidths), *loader.pointers(z, columns, bandwidths, each))
    return torch.logsumexp(each.clamp(-clamp, clamp), 1) - math.log(len(bandwidths)), each


def backward(
    z: Tensor, points: Tensor, bandwidths: Tensor, each: Tensor, upstream: Tensor, clamp: float, needed: Sequence[bool], powers: Sequence[int] = ()
) -> list[Tensor | None]:
    """Gradients of z and points under `upstream` [N], None where not needed; clamped values have none."""
    columns = points.mT.contiguous()
    weight = torch.softmax(each.clamp(-clamp, clamp), 1) * (each.abs() <= clamp) * upstream.unsqueeze(1)
    d_z = torch.empty_like(z) if needed[0] else None
    d_columns = torch.zeros_like(columns) if needed[1] else None
    tensors = loader.pointers(z, columns, bandwidths, each, weight, d_z, d_columns)
    loader.library().ddvi_kde_backward(*_sizes(z, columns, bandwidths), *tensors)
    return [d_z, None if d_columns is None else d_columns.mT.contiguous()]


def _sizes(z: Tensor, columns: Tensor, bandwidths: Tensor) -> list:
    return loader.integers(len(z), columns.shape[1], z.shape[1], len(bandwidths), torch.get_num_threads())
