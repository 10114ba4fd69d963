"""Gaussian approximation of the posterior of one data set, from which `fit_posterior` starts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.inference.model import FlatModel
from ddvi_fast.inference.support import Support
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.rng import Draws

STEPS, SAMPLES, RATE = 1500, 16, 0.05
FULL = 200  # largest number of coordinates with correlations
SCALE = 0.1  # initial standard deviation


class Ellipsoid(nn.Module):
    """Learned affine map `u = shift + factor e` with a lower triangular factor with positive diagonal.

    Args:
        shift: Initial shift [D].
        correlated: Learn the entries below the diagonal (bool).
    """

    def __init__(self, shift: Tensor, correlated: bool) -> None:
        super().__init__()
        dim = len(shift)
        self.shift, self.log_scale = nn.Parameter(shift.clone()), nn.Parameter(torch.full_like(shift, math.log(SCALE)))
        self.below = nn.Parameter(shift.new_zeros(dim, dim)) if correlated and 1 < dim <= FULL else None

    def factor(self) -> Tensor:
        """Return the factor [D, D]."""
        scale = torch.diag(self.log_scale.exp())
        # Rows are in units of their scale, so that one learning rate fits all of them.
        return scale if self.below is None else scale + self.below.tril(-1) * self.log_scale.exp().unsqueeze(1)


def gaussian_start(model: Any, x: Any, support: Support, seed: int, device: torch.device, correlated: bool = True) -> Whitening:
    """Fit the Gaussian that minimizes KL(q || p) in unconstrained coordinates, with Adam from a narrow Gaussian at 0.

    Args:
        model: Model with `log_joint`.
        x: Its data.
        support: Constraints of its parameters.
        seed: Seed of the noise (int).
        device: Device of the parameters.
        correlated: Fit correlations, for up to 200 coordinates (bool, default True).

    Returns:
        The affine map from standard normal to unconstrained coordinates.

    Raises:
        InputError: If the log joint density is not finite at a sample.
    """
    dim = support.dim
    plain = FlatModel(model, support, Whitening(torch.zeros(dim, device=device), torch.eye(dim, device=device)))
    ellipsoid = Ellipsoid(torch.zeros(dim, device=device), correlated)
    optimizer = torch.optim.Adam(ellipsoid.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        noise = rng.normal(Draws(seed, step * SAMPLES), (SAMPLES, dim), rng.START, device=device)
        # Antithetic pairs: odd functions of the noise cancel.
        u = ellipsoid.shift + torch.cat((noise, -noise)) @ ellipsoid.factor().T
        log_joint = plain.log_joint(x, u)
        finite = bool(torch.isfinite(log_joint).all())
        _checks.require(finite, "log_joint", "finite values", "NaN or infinity", "use objective=simulations, or a support without such values")
        optimizer.zero_grad()
        (-log_joint.mean() - ellipsoid.log_scale.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return Whitening(ellipsoid.shift.clone(), ellipsoid.factor().clone())
