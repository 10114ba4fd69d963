"""Kernel density of latents, as the released code estimates a prior and as the latent NLL needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, contiguous, filled, kept, numbers, shapes_of
from ddvi_fast.precision import full_precision, without_autocast
from ddvi_fast.reference import kde as reference


def kde_log_density(z: Tensor, points: Tensor, bandwidths: Sequence[float] | Tensor, clamp: float | None = None) -> Tensor:
    """Gaussian kernel log-density, averaged over bandwidths in probability.

    Args:
        z: where to evaluate, [N, D].
        points: centres of the kernels, [M, D], at least one.
        bandwidths: standard deviations of the kernels, positive.
        clamp: clip each bandwidth's log-density to [-clamp, clamp] before averaging (the released code: 1000).

    Returns:
        nats, [N].

    Example:
        >>> import torch
        >>> round(kde_log_density(torch.zeros(1, 1), torch.zeros(1, 1), [1.0]).item(), 4)
        -0.9189
    """
    _checks.tensor(z, "z", (None, None))
    _checks.tensor(points, "points", (None, z.shape[1]))
    _checks.require(points.shape[0] >= 1, "points", "at least one point", points)
    z, points = full_precision(z, points)
    widths = numbers(bandwidths, "bandwidths", z)
    backend = _backend.choose("kde", z.device, z=z, points=points, constants={"bandwidths": widths})
    if backend == "reference":
        with without_autocast(z.device):
            return reference.kde_log_density(z, points, widths, clamp)
    return _kde(z, points, widths, math.inf if clamp is None else float(clamp), backend)[0]


def _compute(z, points, bandwidths, clamp, backend):
    return _backend.room(backend, "kde").forward(*contiguous(z, points, bandwidths), clamp)


def _fake(z, points, bandwidths, clamp, backend):
    return z.new_empty(len(z)), z.new_empty(len(z), len(bandwidths))


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *operands, ctx.clamp, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*operands, output[1])


def _gradient(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    if upstream is None:
        return (None,) * 5
    needed = list(ctx.needs_input_grad[:2])
    return *kept(_kde_backward(*ctx.saved_tensors, upstream, ctx.clamp, needed, ctx.backend), needed), None, None, None


def _compute_backward(z, points, bandwidths, each, upstream, clamp, needed, backend):
    return filled(_backend.room(backend, "kde").backward(*contiguous(z, points, bandwidths, each, upstream), clamp, needed), z)


def _fake_backward(z, points, bandwidths, each, upstream, clamp, needed, backend):
    return shapes_of(needed, (z, points), z)


_OPERANDS = "Tensor z, Tensor points, Tensor bandwidths"
_kde = Operator(f"kde({_OPERANDS}, float clamp, str backend) -> (Tensor, Tensor)", _compute, _fake)
_kde_backward = Operator(
    f"kde_backward({_OPERANDS}, Tensor each, Tensor upstream, float clamp, bool[] needed, str backend) -> Tensor[]", _compute_backward, _fake_backward
)
_kde.differentiate(_setup, _gradient)
_kde_backward.first_derivative_only()
