"""Gaussian approximation of a posterior from many starts, in the manner of Pathfinder (Zhang et al. 2022, Algorithms 1 to 5).

A path is that of L-BFGS to a mode. Each of its steps has a Gaussian, made of the gradient there and of the inverse Hessian that the steps before it
have found, and the one with the highest evidence bound is kept. Samples of the Gaussians of all paths are weighted by density ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.rng import Draws

PATHS, HISTORY, STEPS = 20, 6, 1000  # paths, pairs of steps and changes of the gradient that are remembered, and largest number of steps of a path
REACH = 2.0  # starts are uniform between -2 and 2
JUDGED = 5  # samples from which the evidence bound of a Gaussian is estimated
_TOLERANCE = 1e-13  # relative change of the density at which a path ends
_CURVED = 1e-12  # least curvature along a step, relative to the squared change of the gradient, from which the inverse Hessian learns

Density = Callable[[Tensor], Tensor]  # log-densities [K] of unconstrained parameters [K, D], float64


class Gaussian(NamedTuple):
    """Mean [D] and lower triangular factor of the covariance [D, D], float64."""

    mean: Tensor
    factor: Tensor

    def at(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Samples [K, D] at standard normal numbers `e` [K, D], and their log-densities [K]."""
        log_q = -0.5 * (e.square() + math.log(2 * math.pi)).sum(-1) - self.factor.diagonal().log().sum()
        return self.mean + e @ self.factor.T, log_q


def draw(density: Density, dim: int, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw from the Gaussians of all paths in turn.

    Args:
        density: Log-density in unconstrained parameters.
        dim: Number of parameters, D (int).
        num_samples: Number of samples, K (int).
        seed: Seed of starts and noise (int).

    Returns:
        Samples [K, D], and their log-weights [K]: log-density less that of the Gaussian of their path.
    """
    starts = REACH * (2 * rng.uniform(Draws(seed), (PATHS, dim), rng.START, dtype=torch.float64) - 1)
    noise, found = Draws(seed).advance(PATHS), []
    for start in starts:
        tried = gaussians(*trajectory(density, start))
        kept = best(density, tried, noise)
        noise = noise.advance(JUDGED * len(tried))
        found += [] if kept is None else [kept]
    if not found:
        raise ValueError("no path reached a place with a finite evidence bound")
    e = rng.normal(noise, (num_samples, dim), rng.START, dtype=torch.float64)
    u, log_q = torch.empty_like(e), e.new_empty(num_samples)
    for place, gaussian in enumerate(found):
        mine = slice(place, None, len(found))
        u[mine], log_q[mine] = gaussian.at(e[mine])
    return u, _values(density, u) - log_q


def trajectory(density: Density, start: Tensor) -> tuple[Tensor, Tensor]:
    """The places [L, D] of L-BFGS on its way from `start` [D], that one included, and the gradients [L, D] of the log-density there."""
    from scipy.optimize import minimize

    latest, path = [], []

    def loss(u):
        place = torch.tensor(u, dtype=torch.float64, device="cpu", requires_grad=True)
        with torch.enable_grad():
            value = density(place.unsqueeze(0))[0]
        (gradient,) = torch.autograd.grad(value, place)
        latest[:] = place.detach(), gradient
        if not path:
            path.append(tuple(latest))
        return -float(value.detach()), -gradient.numpy()

    def reached(u):
        path.append(tuple(latest))  # a step ends with the place that was computed last

    options = {"maxcor": HISTORY, "maxiter": STEPS, "ftol": _TOLERANCE, "gtol": 0.0}
    minimize(loss, start.numpy(), jac=True, method="L-BFGS-B", callback=reached, options=options)
    places, gradients = zip(*path, strict=True)
    return torch.stack(places), torch.stack(gradients)


def gaussians(places: Tensor, gradients: Tensor) -> list[Gaussian]:
    """The Gaussians of the steps of a path, from places and gradients [L, D]; those without a positive definite covariance are left out."""
    scale, pairs, found = torch.ones_like(places[0]), [], []
    for before, after in pairwise(range(len(places))):
        moved, change = places[after] - places[before], gradients[before] - gradients[after]
        if moved @ change > _CURVED * change.square().sum():
            scale = rescaled(scale, moved, change)
            pairs = [*pairs, (moved, change)][-HISTORY:]
        covariance = inverse_hessian(scale, pairs)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not int(failed):
            found.append(Gaussian(places[after] + covariance @ gradients[after], factor))
    return found


def rescaled(scale: Tensor, moved: Tensor, change: Tensor) -> Tensor:
    """Update the diagonal inverse Hessian [D] by a step and the change of the gradient of minus the log-density (Gilbert and Lemarechal 1989)."""
    spread, curvature, steep = (scale * change.square()).sum(), moved @ change, (moved.square() / scale).sum()
    precision = spread / (curvature * scale) + change.square() / curvature - spread * moved.square() / (curvature * steep * scale.square())
    return 1 / precision


def inverse_hessian(scale: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian [D, D] that BFGS makes of a diagonal one [D] and of pairs of steps and changes of the gradient, oldest first."""
    made, one = torch.diag(scale), torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    for moved, change in pairs:
        weight = 1 / (moved @ change)
        left = one - weight * torch.outer(moved, change)
        made = left @ made @ left.T + weight * torch.outer(moved, moved)
    return made


def best(density: Density, tried: list[Gaussian], draws: Draws) -> Gaussian | None:
    """The Gaussian with the highest evidence bound; None if no bound is finite."""
    if not tried:
        return None
    e = rng.normal(draws, (len(tried) * JUDGED, len(tried[0].mean)), rng.START, dtype=torch.float64).unflatten(0, (-1, JUDGED))
    u, log_q = (torch.stack(part) for part in zip(*(gaussian.at(one) for gaussian, one in zip(tried, e, strict=True)), strict=True))
    bounds = (_values(density, u.flatten(0, 1)).unflatten(0, (-1, JUDGED)) - log_q).mean(1)
    place = int(bounds.argmax())
    return tried[place] if bool(bounds[place].isfinite()) else None


@torch.no_grad()
def _values(density: Density, u: Tensor) -> Tensor:
    """Log-densities [K] at `u` [K, D], minus infinity where there is none."""
    return density(u).double().nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
