"""Kernel density in C++: every bandwidth in one pass of distances, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ddvi_fast.native import loader

_MOST_BANDWIDTHS, _MOST_DIMENSIONS = 64, 4096


def unsupported(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float | None = None) -> str | None:
    """Why the kernel cannot compute this density, or None."""
    reason = loader.unusable(z=z, points=points, bandwidths=bandwidths)
    if reason is None and bandwidths.requires_grad and torch.is_grad_enabled():
        return "bandwidths: the C++ density has no gradient to them"
    if reason is None and (len(bandwidths) > _MOST_BANDWIDTHS or z.shape[-1] > _MOST_DIMENSIONS):
        return f"bandwidths, z: the C++ density takes up to {_MOST_BANDWIDTHS} bandwidths and {_MOST_DIMENSIONS} dimensions"
    return reason


def kde_log_density(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float | None) -> Tensor:
    """`reference.kde.kde_log_density`: log-density [N] at `z` [N, D] under kernels on `points` [M, D], in nats."""
    loader.require_usable(unsupported(z, points, bandwidths, clamp))
    each = _PerBandwidth.apply(z, points, bandwidths)
    if clamp is not None:
        each = each.clamp(-clamp, clamp)
    return torch.logsumexp(each, 1) - math.log(len(bandwidths))


class _PerBandwidth(Function):
    """Log-density [N, S] under each bandwidth; backward needs nothing but that and the inputs."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, points: Tensor, bandwidths: Tensor) -> Tensor:
        z, columns, bandwidths = z.detach().contiguous(), points.detach().mT.contiguous(), bandwidths.detach().contiguous()
        each = z.new_empty((len(z), len(bandwidths)))
        loader.library().ddvi_kde_forward(*_sizes(z, columns, bandwidths), *loader.pointers(z, columns, bandwidths, each))
        ctx.save_for_backward(z, columns, bandwidths, each)
        return each

    @staticmethod
    @loader.first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        z, columns, bandwidths, each = ctx.saved_tensors
        upstream = upstream.contiguous()
        d_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        d_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        tensors = loader.pointers(z, columns, bandwidths, each, upstream, d_z, d_columns)
        loader.library().ddvi_kde_backward(*_sizes(z, columns, bandwidths), *tensors)
        return d_z, None if d_columns is None else d_columns.mT, None


def _sizes(z: Tensor, columns: Tensor, bandwidths: Tensor) -> list:
    return loader.integers(len(z), columns.shape[1], z.shape[1], len(bandwidths), torch.get_num_threads())
