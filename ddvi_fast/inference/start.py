"""Where a fit to one data set begins: a Gaussian approximation of the posterior, in whose coordinates a chain has little left to do."""

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
FULL = 200  # coordinates up to which correlations are taken in
SCALE = 0.1  # that it starts with


class Ellipsoid(nn.Module):
    """The learned map `u = shift + factor e`, its factor lower triangular with a positive diagonal.

    Args:
        shift: [D], where it starts.
        correlated: whether anything below the diagonal is learned.
    """

    def __init__(self, shift: Tensor, correlated: bool) -> None:
        super().__init__()
        dim = len(shift)
        self.shift, self.log_scale = nn.Parameter(shift.clone()), nn.Parameter(torch.full_like(shift, math.log(SCALE)))
        self.below = nn.Parameter(shift.new_zeros(dim, dim)) if correlated and 1 < dim <= FULL else None

    def factor(self) -> Tensor:
        scale = torch.diag(self.log_scale.exp())
        # Rows are in units of their scale, so that one rate suits them all.
        return scale if self.below is None else scale + self.below.tril(-1) * self.log_scale.exp().unsqueeze(1)


def gaussian_start(model: Any, x: Any, support: Support, seed: int, device: torch.device, correlated: bool = True) -> Whitening:
    """The Gaussian of least divergence KL(q || p) in unconstrained coordinates, found by Adam from a small one around 0.

    Raises:
        InputError: a log joint that is not finite where it is met.
    """
    dim = support.dim
    plain = FlatModel(model, support, Whitening(torch.zeros(dim, device=device), torch.eye(dim, device=device)))
    ellipsoid = Ellipsoid(torch.zeros(dim, device=device), correlated)
    optimiser = torch.optim.Adam(ellipsoid.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        noise = rng.normal(Draws(seed, step * SAMPLES), (SAMPLES, dim), rng.START, device=device)
        # Each draw with its mirror image: what is odd in the noise cancels.
        u = ellipsoid.shift + torch.cat((noise, -noise)) @ ellipsoid.factor().T
        log_joint = plain.log_joint(x, u)
        finite = bool(torch.isfinite(log_joint).all())
        _checks.require(finite, "log_joint", "finite values", "NaN or infinity", "let simulations alone train, or give a support that excludes them")
        optimiser.zero_grad()
        (-log_joint.mean() - ellipsoid.log_scale.sum()).backward()
        optimiser.step()
    with torch.no_grad():
        return Whitening(ellipsoid.shift.clone(), ellipsoid.factor().clone())
