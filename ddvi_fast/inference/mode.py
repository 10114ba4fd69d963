"""Mode of a fitted posterior: the parameters of the largest density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.inference.model import FlatModel, offers
from ddvi_fast.standardization import tell

if TYPE_CHECKING:
    from ddvi_fast.inference.posterior import FittedPosterior

_STARTS, _STEPS = 8, 200  # samples from which the search starts, and steps of L-BFGS of each
_SETTLED = 1e-2  # largest gradient at a mode, in nats for a standard deviation of the posterior
_FAR = 20.0  # standard deviations from the posterior's mean within which a mode lies


def mode(posterior: FittedPosterior, x: Any, num_samples: int, seed: int) -> Tensor:
    """Search the mode as `FittedPosterior.map` describes it; returns unconstrained parameters [D]."""
    rows = posterior._row(x)
    num_samples = rng.samples(num_samples)
    samples = posterior._unconstrained(num_samples, rows, seed)[:, 0]
    if not offers(posterior.model, "log_joint") or bool(rows.isnan().any()):
        z, _ = posterior.support.constrain(samples)
        return samples[posterior.log_prob(z, x, seed=seed).argmax()]
    flat = FlatModel(posterior.model, posterior.support, posterior.whitening)

    def density(y: Tensor) -> Tensor:
        """The log density [K] of the constrained parameters at coordinates `y` [K, D]."""
        joint = flat.log_joint_of_rows(rows, y.unsqueeze(1))[:, 0] if posterior.conditional else flat.log_joint(posterior.x, y)
        _, log_det = posterior.support.constrain(posterior.whitening(y))
        return joint - log_det

    y = posterior.whitening.inverse(samples)
    best = y[density(y).nan_to_num(nan=-torch.inf).topk(min(_STARTS, num_samples)).indices]
    with torch.enable_grad():
        best = torch.stack([_ascended(density, start) for start in best])
        top = best[density(best).nan_to_num(nan=-torch.inf).argmax()].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(density(top.unsqueeze(0)).sum(), top)
    if not (float(gradient.abs().max()) < _SETTLED and float(top.abs().max()) < _FAR):
        tell("map: the density still rises where the search has ended; its mode may lie on the boundary of the support or at infinity")
    return posterior.whitening(top.detach())


def _ascended(density: Any, start: Tensor) -> Tensor:
    """Climb from coordinates `start` [D] by L-BFGS; the start itself where that does not raise the density."""
    y = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([y], max_iter=_STEPS, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -density(y.unsqueeze(0)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        before, after = density(torch.stack((start, y)))
    return y.detach() if bool(after >= before) else start
