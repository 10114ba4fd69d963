"""Posterior of a person's proportions: a diffusion posterior of the likelihood's quadratic summary, weighted by the binomial likelihood itself.

With many variants the log-likelihood is nearly quadratic in the proportions: a maximum, which may lie outside of the simplex, and a curvature.
One diffusion posterior reads these numbers of any person, with any number of calls. Importance weights then take the exact likelihood in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Dirichlet, constraints

from ddvi_fast.genomes.sources import Calls, curvature, fitted_proportions
from ddvi_fast.inference import FittedPosterior, Support, Training, fit_posterior

_TRAINING = Training(steps=200, batch_size=256)
_STEPS = 30  # of expectation-maximization, to the maximum around which the likelihood is expanded
_FEWEST = 1e-3  # least fraction of the calls of the fitted people for which the posterior is trained
_LEAST_CURVATURE = 1.0  # added to the curvature, so that a person without calls has a summary, too


class Summaries:
    """Model of the summaries `x` of people: a maximum [K - 1], and the Cholesky factor of the curvature [K (K - 1) / 2], in that order.

    Args:
        x: Summaries of some people, float64 [N, F], whose curvatures simulations have.
        num_sources: Number of sources, K, at least 2.
        concentration: Concentration of the symmetric Dirichlet prior.
    """

    def __init__(self, x: Tensor, num_sources: int, concentration: float) -> None:
        self.x, self.prior = x, Dirichlet(torch.full((num_sources,), concentration, dtype=torch.float64, device="cpu"), validate_args=False)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Quadratic log-likelihood of proportions `z` [..., N, K], nats [..., N], 0 at its maximum."""
        centre, factor = parts(x, z.shape[-1])
        return -0.5 * ((z[..., :-1] - centre).unsqueeze(-2) @ factor).squeeze(-2).square().sum(-1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Log joint density [..., N] up to a constant of each person."""
        free = (self.prior.concentration - 1).to(z)
        return self.log_likelihood(x, z) + (free * z.clamp_min(torch.finfo(z.dtype).tiny).log()).sum(-1)

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        """Proportions of the prior, with summaries that have the curvatures of some people, or of such people with fewer calls."""
        z = self.prior.sample((n,))
        x = self.x[torch.randint(len(self.x), (n,), device="cpu")] * _FEWEST ** (0.5 * torch.rand(n, 1, dtype=torch.float64, device="cpu").square())
        _, factor = parts(x, z.shape[1])
        noise = torch.randn(n, z.shape[1] - 1, 1, dtype=torch.float64, device="cpu")
        centre = z[:, :-1] + torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        return z.float(), torch.cat((centre, x[:, z.shape[1] - 1 :]), 1).float()


def parts(x: Tensor, num_sources: int) -> tuple[Tensor, Tensor]:
    """Maximum [N, K - 1] and lower triangular factor of the curvature [N, K - 1, K - 1] of summaries [N, F]."""
    dim = num_sources - 1
    row, column = torch.tril_indices(dim, dim, device=x.device)
    factor = x.new_zeros(len(x), dim, dim)
    factor[:, row, column] = x[:, dim:]
    return x[:, :dim], factor


def summary(calls: Calls, frequencies: Tensor) -> Tensor:
    """Summaries of the likelihoods of some people, float64 [N, F]."""
    number = len(frequencies)
    start = torch.full((len(calls.counted), number), 1 / number, device="cpu")
    near = fitted_proportions(calls, start, frequencies, _STEPS)
    gradient, curved = curvature(calls, near, frequencies)
    factor = torch.linalg.cholesky(curved + _LEAST_CURVATURE * torch.eye(number - 1, dtype=curved.dtype, device="cpu"))
    step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
    row, column = torch.tril_indices(number - 1, number - 1)
    return torch.cat((near[:, :-1].double() + step, factor[:, row, column]), 1)


def fit_to(summaries: Tensor, num_sources: int, concentration: float, seed: int) -> FittedPosterior:
    """Diffusion posterior of proportions given a summary, in the simplex's coordinates, for people like those of `summaries` [N, F]."""
    model = Summaries(summaries, num_sources, concentration)
    return fit_posterior(model, summaries.float(), support=Support(constraints.simplex, num_sources), training=_TRAINING, seed=seed)
