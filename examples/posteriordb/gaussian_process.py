"""Gaussian processes on a line, with normal and with Poisson observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, constraints

Data = Mapping[str, Tensor]


def log_prior(z: Mapping[str, Tensor]) -> Tensor:
    """Compute the log-prior of length scale `rho` and amplitude `alpha`, the same for both models."""
    return Gamma(25.0, 4.0).log_prob(z["rho"]) + Normal(0, 2).log_prob(z["alpha"])


def covariance(x: Tensor, z: Mapping[str, Tensor], diagonal: Tensor) -> Tensor:
    """Compute the squared-exponential covariance [K, N, N] at places `x` [N] plus a diagonal [K], in float64."""
    rho, alpha = (z[name].double()[..., None, None] for name in ("rho", "alpha"))
    distances = (x.unsqueeze(0) - x.unsqueeze(1)).square()
    return alpha.square() * torch.exp(-0.5 * distances / rho.square()) + diagonal[..., None, None] * torch.eye(len(x), dtype=torch.float64)


class Regression:
    """Normal observations of the process; `sigma` is their variance."""

    support = {"rho": constraints.positive, "alpha": constraints.positive, "sigma": constraints.positive}  # noqa: RUF012 - read only

    def __init__(self, x: Data) -> None:
        self.x, self.y = x["x"], x["y"]

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        factor = torch.linalg.cholesky(covariance(self.x, z, z["sigma"].double()))
        scaled = torch.linalg.solve_triangular(factor, self.y.expand(*z["rho"].shape, -1).unsqueeze(-1), upper=False).squeeze(-1)
        log_likelihood = -0.5 * scaled.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_prior(z) + Normal(0, 1).log_prob(z["sigma"]) + log_likelihood

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.stack((z["rho"], z["alpha"], z["sigma"]), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.support, reported.unbind(-1), strict=True))


class Poisson:
    """Counts with the exponential of the process as their rate; the parameter is white noise, which the covariance's factor colors."""

    def __init__(self, x: Data) -> None:
        self.x, self.k = x["x"], x["k"]
        self.support = {"rho": constraints.positive, "alpha": constraints.positive, "white": (constraints.real, (len(self.x),))}

    def factor(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.linalg.cholesky(covariance(self.x, z, torch.full_like(z["rho"], 1e-10, dtype=torch.float64)))

    def process(self, z: Mapping[str, Tensor]) -> Tensor:
        return (self.factor(z) @ z["white"].double().unsqueeze(-1)).squeeze(-1)

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        f = self.process(z)
        return log_prior(z) + Normal(0, 1).log_prob(z["white"]).sum(-1) + (self.k * f - f.exp()).sum(-1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((z["rho"].unsqueeze(-1), z["alpha"].unsqueeze(-1), self.process(z)), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        z = {"rho": reported[..., 0], "alpha": reported[..., 1]}
        white = torch.linalg.solve_triangular(self.factor(z), reported[..., 2:].double().unsqueeze(-1), upper=False)
        return {**z, "white": white.squeeze(-1)}
