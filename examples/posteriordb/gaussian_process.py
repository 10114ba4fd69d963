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
    """Counts with the exponential of the process as their rate.

    Counts determine the process better than its length scale and amplitude, so that white noise behind it would depend strongly on them. The
    parameter is what is left: the deviations of that noise from its Gaussian posterior given scale and amplitude, if the logarithms of the
    counts were normal observations.
    """

    def __init__(self, x: Data) -> None:
        self.x, self.k = x["x"], x["k"]
        self.support = {"rho": constraints.positive, "alpha": constraints.positive, "deviations": (constraints.real, (len(self.x),))}

    def _factors(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The factor of the covariance, that of the precision of the noise given the counts, and the mean of the noise."""
        factor = torch.linalg.cholesky(covariance(self.x, z, torch.full_like(z["rho"], 1e-10, dtype=torch.float64)))
        seen = (self.k + 0.5).double()  # precision of the logarithm of a count
        precision = torch.linalg.cholesky(torch.eye(len(self.x), dtype=torch.float64) + factor.mT @ (seen.unsqueeze(-1) * factor))
        mean = torch.cholesky_solve(factor.mT @ (seen * seen.log()).unsqueeze(-1), precision)
        return factor, precision, mean

    def _white_and_process(self, z: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The noise and the process [K, N], and the log-determinant of the map from the deviations to the noise [K]."""
        factor, precision, mean = self._factors(z)
        white = mean + torch.linalg.solve_triangular(precision.mT, z["deviations"].double().unsqueeze(-1), upper=True)
        return white.squeeze(-1), (factor @ white).squeeze(-1), -precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        white, f, log_det = self._white_and_process(z)
        return log_prior(z) + Normal(0, 1).log_prob(white).sum(-1) + (self.k * f - f.exp()).sum(-1) + log_det

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((z["rho"].unsqueeze(-1), z["alpha"].unsqueeze(-1), self._white_and_process(z)[1]), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        z = {"rho": reported[..., 0], "alpha": reported[..., 1]}
        factor, precision, mean = self._factors(z)
        white = torch.linalg.solve_triangular(factor, reported[..., 2:].double().unsqueeze(-1), upper=False)
        return {**z, "deviations": (precision.mT @ (white - mean)).squeeze(-1)}
