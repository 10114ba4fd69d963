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
BASES = (1.0, 1e-3, 1e3, 1e-6, 1e6, 1e-9, 1e9, 1e-12, 1e12)  # scales at which the curvature of a density is looked at
_NEAR, _REACH = 100.0, 20.0  # ratio of a base to the scale that it finds, and standard deviations from 0 that the fit can go
_CURVED = 0.1  # least share of the curvature in the change of a gradient
_ATTEMPTS = 6  # fits from where the last one ended
_FAR, _WRONG = 5.0, 10.0  # standard deviations by which a fitted Gaussian is to be moved, and factor of its variance, from which it is unfinished
_STEP, _TOLERATED = 0.02, 0.01  # step of the differences that check a gradient, in standard deviations, and tolerated relative error
FULL = 200  # largest number of coordinates with correlations
SCALE = 0.1  # initial standard deviation
_POLISHING, _GAINED = 100, 1e-3  # natural-gradient steps, and nats by which each must raise the bound
_SIZES = (1.0, 0.5, 0.2, 0.05)  # sizes of a step that are tried
_CURVATURE_ROWS = 2048  # rows at which gradients are differenced
_AXIS = 0.1  # distance of the differences, in standard deviations
_LEAST_CURVATURE = 1e-3  # least curvature that a natural-gradient step takes as it is, in units of the present one; the inverse is the largest


class Ellipsoid(nn.Module):
    """Learned affine map `u = shift + factor e` with a lower triangular factor with positive diagonal.

    Args:
        shift: Initial shift [D].
        correlated: Learn the entries below the diagonal (bool).
        scale: Initial diagonal (float, default 0.1).
    """

    def __init__(self, shift: Tensor, correlated: bool, scale: float = SCALE) -> None:
        super().__init__()
        dim = len(shift)
        self.shift, self.log_scale = nn.Parameter(shift.clone()), nn.Parameter(torch.full_like(shift, math.log(scale)))
        self.below = nn.Parameter(shift.new_zeros(dim, dim)) if correlated and 1 < dim <= FULL else None

    def factor(self) -> Tensor:
        """Return the factor [D, D]."""
        scale = torch.diag(self.log_scale.exp())
        # Rows are in units of their scale, so that one learning rate fits all of them.
        return scale if self.below is None else scale + self.below.tril(-1) * self.log_scale.exp().unsqueeze(1)

    @torch.no_grad()
    def set(self, shift: Tensor, factor: Tensor) -> None:
        """Give the map another shift [D] and lower triangular factor [D, D]."""
        scale = factor.diagonal()
        self.shift.copy_(shift), self.log_scale.copy_(scale.log())
        if self.below is not None:
            self.below.copy_((factor / scale.unsqueeze(1)).tril(-1))

    def forward(self, e: Tensor) -> Tensor:
        """Return `u` [.., D] at `e` [.., D]."""
        return self.shift + e @ self.factor().T


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
    unit = units(plain, x, rng.normal(Draws(seed), (SAMPLES, dim), rng.START, device=device))
    plain.whitening = Whitening(zeros, torch.diag(unit))
    ellipsoid = Ellipsoid(zeros, correlated)
    for attempt in range(_ATTEMPTS):  # an optimizer that has seen much larger gradients moves no further; a new one does
        _fit(ellipsoid, plain, x, seed)
        with torch.no_grad():
            fitted = Whitening(unit * ellipsoid.shift, unit.unsqueeze(1) * ellipsoid.factor())
        if ellipsoid.below is not None:
            fitted = _polished(fitted, model, x, support, seed)
            ellipsoid.set(fitted.shift / unit, fitted.factor / unit.unsqueeze(1))
        if not unfinished(FlatModel(model, support, fitted), x, seed, strict=attempt > 0).any():
            break
    return fitted


def _polished(start: Whitening, model: Any, x: Any, support: Support, seed: int) -> Whitening:
    """Raise the bound of a Gaussian by natural-gradient steps, which strong correlations do not slow down (Khan and Rue 2023), while it rises."""
    dim = support.dim
    many, few = (_antithetic(seed, STEPS * SAMPLES, count, start.shift) for count in (16 * SAMPLES, max(1, _CURVATURE_ROWS // (4 * dim))))
    best, bound = start, _bound(FlatModel(model, support, start), x, many)
    for _ in range(_POLISHING):
        slope = _slope(FlatModel(model, support, best), x, many, few)
        for size in () if slope is None else _SIZES:
            tried = _natural_step(best, *slope, size)
            risen = -math.inf if tried is None else _bound(FlatModel(model, support, tried), x, many)
            if risen > bound + _GAINED:
                best, bound = tried, risen
                break
        else:
            break
    return best


def _slope(flat: FlatModel, x: Any, many: Tensor, few: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean gradient [D] and curvature of minus the log-density [D, D], in coordinates in which the Gaussian is N(0, I).

    The gradient is averaged over `many` [K, D] and the curvature over `few` [S, D] samples, by differences of gradients along the axes. None if
    a value is not finite.
    """
    dim = few.shape[1]
    axes = _AXIS * torch.eye(dim, dtype=few.dtype, device=few.device)
    around = torch.cat((few.unsqueeze(1) + axes, few.unsqueeze(1) - axes), 1).reshape(-1, dim)
    above, below = _gradient(flat, x, around).reshape(-1, 2, dim, dim).mean(0)
    mean, curvature = _gradient(flat, x, many).mean(0), -(above - below) / (2 * _AXIS)
    finite = bool(curvature.isfinite().all() & mean.isfinite().all())
    return (mean, 0.5 * (curvature + curvature.T)) if finite else None


def _natural_step(whitening: Whitening, mean: Tensor, curvature: Tensor, size: float) -> Whitening | None:
    """The Gaussian whose precision is moved by the share `size` towards the curvature, and whose mean along the gradient.

    Along an axis without downward curvature the precision stays. None if the covariance is not positive definite in rounding.
    """
    values, vectors = torch.linalg.eigh(curvature)
    values = 1 + size * (torch.where(values > 0, values.clamp(_LEAST_CURVATURE, 1 / _LEAST_CURVATURE), 1.0) - 1)
    moved = size * vectors @ ((vectors.T @ mean) / values).clamp(-_FAR, _FAR)
    factor = whitening.factor.double()
    covariance = factor @ (vectors / values) @ vectors.T @ factor.T
    lower, failed = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.T))
    made = Whitening((whitening.shift.double() + factor @ moved).float(), lower.float())
    return None if int(failed) else made


def _gradient(flat: FlatModel, x: Any, y: Tensor) -> Tensor:
    """Gradients, float64 [.., D], of the log-density at `y` [.., D]."""
    y = y.detach().requires_grad_()
    return torch.autograd.grad(flat.log_joint(x, y).sum(), y)[0].double()


@torch.no_grad()
def _bound(flat: FlatModel, x: Any, y: Tensor) -> float:
    """The evidence bound of the Gaussian of `flat.whitening`, up to a constant, at samples `y` [K, D]."""
    return float(flat.log_joint(x, y).double().mean())


def _antithetic(seed: int, first: int, count: int, like: Tensor) -> Tensor:
    """Pairs `y`, `-y` of standard normal samples [2 count, D], in whose means odd functions of them cancel."""
    noise = rng.normal(Draws(seed, first), (count, len(like)), rng.START, device=like.device)
    return torch.cat((noise, -noise))


def _fit(ellipsoid: Ellipsoid, plain: FlatModel, x: Any, seed: int) -> None:
    """Minimize KL(q || p) for all steps."""
    optimizer = torch.optim.Adam(ellipsoid.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        log_joint = plain.log_joint(x, ellipsoid(_antithetic(seed, step * SAMPLES, SAMPLES, ellipsoid.shift)))
        finite = bool(torch.isfinite(log_joint).all())
        _checks.require(finite, "log_joint", "finite values", "NaN or infinity", "use objective=simulations, or a support without such values")
        optimizer.zero_grad()
        (-log_joint.mean() - ellipsoid.log_scale.sum()).backward()
        optimizer.step()


def units(plain: FlatModel, x: Any, noise: Tensor) -> Tensor:
    """Find the scales [D] of coordinates whose density is curved at another scale than 1 around 0; the scale of all others is 1.

    At each base the curvature follows from Stein's identity, E[e g(s e)] = s E[g'(s e)] for the gradient g and normal e. A base is right for a
    coordinate if the standard deviation that belongs to the curvature is near it and the density's centre is within reach.

    Args:
        plain: Density in unconstrained coordinates.
        x: Its data.
        noise: Standard normal numbers [K, D].
    """
    noise = torch.cat((noise, -noise))
    found, open_ = torch.ones_like(noise[0]), torch.ones_like(noise[0], dtype=torch.bool)
    for base in BASES:
        u = (base * noise).requires_grad_()
        try:
            joint = plain.log_joint(x, u)
            gradient = torch.autograd.grad(joint.sum(), u)[0].double()
        except (RuntimeError, ValueError, ArithmeticError):
            if base == 1:
                raise
            continue  # a model need not have values at other scales than its own
        if not bool(joint.isfinite().all()) or not bool(gradient.isfinite().all()):
            continue
        change = noise * gradient
        curvature = -change.mean(0) / base
        scale = curvature.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
        right = (curvature * base > _CURVED * change.abs().mean(0)) & (scale > base / _NEAR) & (scale < base * _NEAR)
        right &= (gradient.mean(0).abs() * scale < _REACH) | (base == 1)
        found = torch.where(open_ & right & (base != 1), scale.float(), found)
        open_ &= ~right
        if not bool(open_.any()):
            break
    return found


def unfinished(plain: FlatModel, x: Any, seed: int, strict: bool = False) -> Tensor:
    """Tell in which coordinates a density still wants to move, widen or narrow the Gaussian of `plain.whitening`, bool [D].

    Where the Gaussian is the best one, the gradient g of the density in coordinates y ~ N(0, I) has E[g] = 0 and E[y g] = -1.
    """
    y = _antithetic(seed, STEPS * SAMPLES, 16 * SAMPLES, plain.whitening.shift).requires_grad_()
    gradient = torch.autograd.grad(plain.log_joint(x, y).sum(), y)[0]
    width = -(y.detach() * gradient).mean(0)
    far, wrong = (_FAR / 10, _WRONG / 5) if strict else (_FAR, _WRONG)  # one that was not found at once is looked at more closely
    return ~((gradient.mean(0).abs() < far) & (width > 1 / wrong) & (width < wrong))


def require_gradient(model: Any, x: Any, support: Support, u: Tensor) -> None:
    """Require that the log joint density of a model has a gradient with respect to each parameter.

    Args:
        model: Model with `log_joint`.
        x: Its data.
        support: Constraints of its parameters.
        u: Unconstrained parameters [..., D] at which the gradient is computed.

    Raises:
        InputError: If it has none in an unbounded parameter, or in one whose value changes it, or if it is not the gradient of its values.
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
    gradients = {name: torch.zeros_like(value) if one is None else one for (name, value), one in zip(named.items(), found, strict=True)}
    _require_that_of_its_values(model, x, support, u, density.detach(), gradients)


def _require_that_of_its_values(model: Any, x: Any, support: Support, u: Tensor, density: Tensor, gradients: dict[str, Tensor]) -> None:
    """Require that gradients of the density at unconstrained `u` are those of its values, by differences along one direction for each sample.

    The rest of a difference over half the distance is a quarter for the right gradient, unless the density has jumps or noise.
    """
    size = u.detach().double().reshape(-1, support.dim).std(0).clamp(min=torch.finfo(u.dtype).tiny)
    direction = size * rng.normal(Draws(0), tuple(u.shape), rng.START, device=u.device)

    def difference(step: float) -> tuple[Tensor, Tensor]:
        """Difference quotient of the density, and what the gradients leave of it."""
        (high, above), (low, below) = (_at(model, x, support, (u + sign * direction).to(u.dtype)) for sign in (step, -step))
        explained = sum((gradients[name].double() * (high[name].double() - low[name].double())).reshape(*density.shape, -1).sum(-1) for name in high)
        return (above - below) / (2 * step), (above - below - explained) / (2 * step)

    (_, wide), (quotient, narrow) = difference(_STEP), difference(_STEP / 2)
    rounding = 4 * torch.finfo(density.dtype).eps * density.double().abs() / _STEP
    wrong = (narrow.abs() - 4 * (wide - narrow).abs() - rounding > _TOLERATED * quotient.abs()).double().mean()
    got = f"another one at {wrong:.0%} of the samples: a part of it is detached, or not computed by torch"
    _checks.require(not wrong > 0.5, "log_joint", "the gradient of its values", got)


def _at(model: Any, x: Any, support: Support, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters at unconstrained `u`, by name, and their density in double precision."""
    with torch.no_grad():
        z, _ = support.constrain(u)
        return z if isinstance(z, dict) else {"": z}, model.log_joint(x, z).double()
