"""Kernel density of latents, as the released code estimates a prior and as the latent NLL needs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks


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
        >>> round(kde_log_density(torch.zeros(1, 1), torch.zeros(1, 1), [1.0]).item(), 4)
        -0.9189
    """
    _checks.tensor(z, "z", (None, None))
    _checks.tensor(points, "points", (None, z.shape[1]))
    _checks.require(points.shape[0] >= 1, "points", "at least one point", points)
    widths = torch.as_tensor(bandwidths, dtype=z.dtype, device=z.device)
    _checks.require(widths.dim() == 1 and len(widths) >= 1, "bandwidths", "a sequence of positive numbers", bandwidths)
    # Reading values back from a device would stall it, so only host values are looked at.
    _checks.require(widths.device.type != "cpu" or bool((widths > 0).all()), "bandwidths", "a sequence of positive numbers", bandwidths)
    return _backend.operation("kde", z, points, widths).kde_log_density(z, points, widths, clamp)
