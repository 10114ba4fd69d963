"""Gaussian mixture task: a narrow and a wide Gaussian with the same unknown mean and a uniform prior on a box."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from ddvi_fast.inference import Architecture, FittedPosterior, Training, fit_posterior

BOX, WIDE, NARROW = 10.0, 1.0, 0.1


class GaussianMixture:
    """Two parameters uniform on [-10, 10]; the data are the parameters with noise of one of two scales."""

    support = constraints.interval(-BOX, BOX)

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = BOX * (2 * torch.rand(n, 2) - 1)
        scale = torch.where(torch.rand(n, 1) < 0.5, WIDE, NARROW)
        return z, z + scale * torch.randn(n, 2)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        squared = (x - z).square().sum(-1)
        components = [-0.5 * squared / scale**2 - math.log(2 * math.pi * scale**2) for scale in (WIDE, NARROW)]
        return torch.logaddexp(*components) - math.log(2) - 2 * math.log(2 * BOX)


def fit(x: Tensor | None = None, training: Training = Training(), architecture: Architecture = Architecture(), seed: int = 0) -> FittedPosterior:
    """Fit a posterior that accepts any data [2]."""
    model = GaussianMixture()
    return fit_posterior(model, x, support=model.support, objective="simulations", training=training, architecture=architecture, seed=seed)


if __name__ == "__main__":
    posterior = fit(torch.tensor([3.0, -2.0]))
    print(posterior, posterior.importance_sample(), posterior.diagnostics(), sep="\n")
