"""Small inference problems with exact reference draws, on which the settings of fits with a fixed number of simulations were chosen.

None of them is a problem of sbibm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

BATCH = 1 << 18  # parameters tried at a time by rejection


@dataclass(frozen=True)
class Task:
    """A problem: prior draws [n, D], data [n, P] of parameters, reference draws [n, D] for data [P], and the parameters' support."""

    prior: Callable[[int], Tensor]
    data: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor, int], Tensor]
    support: Any = constraints.real

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = self.prior(n)
        return z, self.data(z)


def _normal(mean: Tensor, scale: Tensor | float) -> Tensor:
    return mean + scale * torch.randn_like(mean)


def _by_rejection(prior: Callable[[int], Tensor], log_likelihood: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Reference draws: prior draws, accepted in proportion to a likelihood whose logarithm is at most 0."""

    def reference(x: Tensor, count: int) -> Tensor:
        kept: list[Tensor] = []
        while sum(map(len, kept)) < count:
            z = prior(BATCH)
            kept.append(z[torch.rand(BATCH).log() < log_likelihood(z, x)])
        return torch.cat(kept)[:count]

    return reference


def banana() -> Task:
    """Two normal parameters; the second is seen beside the square of the first, so that the posterior is a thin bow."""
    scales = torch.tensor([0.5, 0.1])

    def mean(z: Tensor) -> Tensor:
        return torch.stack((z[:, 0], z[:, 1] + z[:, 0].square()), 1)

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((x - mean(z)) / scales).square().sum(1)

    def prior(n: int) -> Tensor:
        return torch.randn(n, 2)

    return Task(prior, lambda z: _normal(mean(z), scales), _by_rejection(prior, log_likelihood))


def two_modes() -> Task:
    """Three parameters in a box, of which only the size of the first, a product and a sum are seen."""
    scales = torch.tensor([0.1, 0.1, 0.2])

    def mean(z: Tensor) -> Tensor:
        return torch.stack((z[:, 0].abs(), z[:, 0] * z[:, 1], z[:, 1] + z[:, 2]), 1)

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((x - mean(z)) / scales).square().sum(1)

    def prior(n: int) -> Tensor:
        return 4 * torch.rand(n, 3) - 2

    return Task(prior, lambda z: _normal(mean(z), scales), _by_rejection(prior, log_likelihood), constraints.interval(-2.0, 2.0))


def line_with_outliers() -> Task:
    """Intercept, slope and width of a line seen at eight places with Student's noise of three degrees of freedom."""
    places, freedom = torch.linspace(-1, 1, 8), 3.0
    noise = torch.distributions.StudentT(freedom)

    def prior(n: int) -> Tensor:
        return torch.cat((2 * torch.randn(n, 2), torch.empty(n, 1).uniform_(0.2, 2.0)), 1)

    def residual(z: Tensor, x: Tensor) -> Tensor:
        return (x - z[:, :1] - z[:, 1:2] * places) / z[:, 2:]

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return (noise.log_prob(residual(z, x)) - z[:, 2:].log()).sum(1)

    def reference(x: Tensor, count: int) -> Tensor:
        """Sampling-importance-resampling without replacement from a wide Student proposal around the least-squares line."""
        design = torch.stack((torch.ones(8), places), 1)
        center = torch.linalg.lstsq(design, x.unsqueeze(1)).solution.T
        proposal = torch.distributions.StudentT(3.0, center, torch.tensor([[0.8, 1.2]]))
        lines = proposal.sample((1 << 20,)).squeeze(1)
        z = torch.cat((lines, torch.empty(len(lines), 1).uniform_(0.2, 2.0)), 1)
        log_weights = log_likelihood(z, x) - 0.5 * (lines / 2).square().sum(1) - proposal.log_prob(lines).sum(1)
        return z[torch.rand(len(z)).log() < log_weights - log_weights.max()][:count]

    free = constraints.independent(constraints.real, 0)
    return Task(
        prior, lambda z: z[:, :1] + z[:, 1:2] * places + z[:, 2:] * noise.sample((len(z), 8)), reference,
        constraints.cat([free, constraints.interval(0.2, 2.0)], 1, [2, 1]),
    )  # fmt: skip


def linear() -> Task:
    """Ten normal parameters seen through a fixed matrix with normal noise."""
    matrix = torch.randn(10, 10, generator=torch.Generator().manual_seed(5)) / 10**0.5 + 0.5 * torch.eye(10)
    scale = 0.5
    covariance = torch.linalg.inv(torch.eye(10) + matrix.T @ matrix / scale**2)

    def reference(x: Tensor, count: int) -> Tensor:
        mean = covariance @ matrix.T @ x / scale**2
        return mean + torch.randn(count, 10) @ torch.linalg.cholesky(covariance).T

    return Task(lambda n: torch.randn(n, 10), lambda z: _normal(z @ matrix.T, scale), reference)


TASKS = {"banana": banana, "two modes": two_modes, "line with outliers": line_with_outliers, "linear": linear}
