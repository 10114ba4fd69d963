"""Gaussian approximation of the posterior of one data set, from which `fit_posterior` starts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.inference import kinds
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
        InputError: If the log joint density is not finite at a sample, or has no gradient.
    """
    dim = support.dim
    zeros = torch.zeros(dim, dtype=torch.float32, device=device)
    plain = FlatModel(model, support, Whitening(zeros, torch.eye(dim, dtype=torch.float32, device=device)))
    require_gradient(model, x, support, SCALE * rng.normal(Draws(seed), (2 * SAMPLES, dim), rng.START, device=device))
    ellipsoid = Ellipsoid(zeros, correlated)
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


def require_gradient(model: Any, x: Any, support: Support, u: Tensor) -> None:
    """Require that the log joint density of a model has a gradient with respect to each parameter.

    Args:
        model: Model with `log_joint`.
        x: Its data.
        support: Constraints of its parameters.
        u: Unconstrained parameters [..., D] at which the gradient is computed.

    Raises:
        InputError: If it has none in an unbounded parameter, or in one whose value changes it.
    """
    with torch.enable_grad():
        z, _ = support.constrain(u)
        named = {name: value.detach().requires_grad_() for name, value in (z.items() if isinstance(z, dict) else (("", z),))}
        density = _checks.tensor(model.log_joint(x, named if support.named else named[""]), "log_joint")
        if density.shape != u.shape[:-1] or not bool(density.isfinite().all()):
            return  # refused where it is used
        traced = density.requires_grad
        found = torch.autograd.grad(density.sum(), list(named.values()), allow_unused=True) if traced else [None] * len(named)
    for (name, value), gradient in zip(named.items(), found, strict=True):
        moves = value.new_zeros(value.shape, dtype=torch.bool) if gradient is None else gradient != 0
        lead = value.dim() - len(support.shapes[name])
        still = (~moves.reshape(-1, *value.shape[lead:]).any(0)).nonzero().tolist()
        for place in still:
            moved = value.detach().clone()
            entry = (..., *place)
            moved[entry] = value.detach()[entry].roll(1, 0)
            with torch.no_grad():
                others = {**named, name: moved}
                unused = bool((density == model.log_joint(x, others if support.named else others[""])).all())
            proper = unused and kinds.limited(support.constraints[name])
            got = "none: it does not depend on it, which is no proper posterior" if unused else "none: it is detached, or not computed by torch"
            called = f"{name or 'z'}{place if place else ''}"
            _checks.require(proper, "log_joint", f"a gradient with respect to {called}", got)
