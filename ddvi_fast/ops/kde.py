"""Kernel density of latents: the released code's estimate of a prior, and the latent NLL."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operands import kernel_powers
from ddvi_fast._operator import Operator, positive_tensor
from ddvi_fast.precision import full_precision, without_autocast
from ddvi_fast.reference import kde as reference


def kde_log_density(z: Tensor, points: Tensor, bandwidths: Sequence[float] | Tensor, clamp: float | None = None) -> Tensor:
    """Gaussian kernel log-density, averaged over bandwidths in probability.

    Args:
        z: Positions at which the density is evaluated, [N, D].
        points: Centers of the kernels, [M, D], M at least 1.
        bandwidths: Standard deviations of the kernels, positive, [S].
        clamp: Limit to which each bandwidth's log-density is clipped, [-clamp, clamp], before averaging (default None: no limit; the
            released code has 1000).

    Returns:
        The log-density in nats, [N].

    Raises:
        InputError: The shapes do not fit, there is no point, or a bandwidth is not positive.

    Example:
        >>> import torch
        >>> round(kde_log_density(torch.zeros(1, 1), torch.zeros(1, 1), [1.0]).item(), 4)
        -0.9189
    """
    _checks.tensor(z, "z", (None, None))
    return with_widths(z, points, bandwidths, positive_tensor(bandwidths, "bandwidths", z), clamp)


def with_widths(z: Tensor, points: Tensor, bandwidths: Sequence[float] | Tensor, widths: Tensor, clamp: float | None) -> Tensor:
    """`kde_log_density` of bandwidths that are a tensor already."""
    _checks.tensor(z, "z", (None, None))
    _checks.tensor(points, "points", (None, z.shape[1]))
    _checks.require(points.shape[0] >= 1, "points", "at least one point", points)
    clamp = None if clamp is None else _checks.number(clamp, "clamp", above=0)
    _checks.same_dtype("points", points, z)
    z, points, widths = full_precision(z, points, widths)
    backend = _backend.choose("kde", z.device, z=z, points=points, constants={"bandwidths": widths})
    if backend == "reference":
        with without_autocast(z.device):
            return reference.kde_log_density(z, points, widths, clamp)
    # Which kernels are powers of others is known of numbers on the host alone: those on a device would have to be waited for.
    powers = [] if isinstance(bandwidths, Tensor) else kernel_powers(bandwidths)
    return _kde(z, points, widths, powers, math.inf if clamp is None else float(clamp), backend)[0]


def _compute(z, points, bandwidths, powers, clamp, backend):
    return _backend.implementation(backend, "kde").forward(z, points, bandwidths, clamp, powers)


def _fake(z, points, bandwidths, powers, clamp, backend):
    return z.new_empty(len(z)), z.new_empty(len(z), len(bandwidths))


def _compute_backward(z, points, bandwidths, powers, clamp, each, upstream, needed, backend):
    return _backend.implementation(backend, "kde").backward(z, points, bandwidths, each, upstream, clamp, needed, powers)


_kde = Operator(
    "kde(Tensor z, Tensor points, Tensor bandwidths, int[] powers, float clamp, str backend) -> (Tensor, Tensor)",
    _compute,
    _fake,
    _compute_backward,
    gradients_of=("z", "points"),
    saved=(1,),
    constant=(1,),
)
