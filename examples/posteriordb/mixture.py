"""A mixture of two Gaussians, and a hidden Markov chain with two states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, Normal, constraints

Data = Mapping[str, Tensor]


class TwoGaussians:
    """Mixture of two Gaussians with ordered means; the parameter is the logarithm of their distance."""

    support = {  # noqa: RUF012 - read only
        "low": constraints.real, "log_gap": constraints.real, "sigma": (constraints.positive, (2,)), "theta": constraints.unit_interval,
    }  # fmt: skip

    def __init__(self, x: Data) -> None:
        self.y = x["y"].float()

    @staticmethod
    def means(z: Mapping[str, Tensor]) -> Tensor:
        return torch.stack((z["low"], z["low"] + z["log_gap"].exp()), -1)

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        mu, theta = self.means(z), z["theta"]
        log_prior = Normal(0, 2).log_prob(mu).sum(-1) + Normal(0, 2).log_prob(z["sigma"]).sum(-1) + Beta(5.0, 5.0).log_prob(theta)
        of_parts = Normal(mu.unsqueeze(-1), z["sigma"].unsqueeze(-1)).log_prob(self.y)
        weights = torch.stack((theta.log(), torch.log1p(-theta)), -1).unsqueeze(-1)
        return log_prior + z["log_gap"] + torch.logsumexp(weights + of_parts, -2).sum(-1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((self.means(z), z["sigma"], z["theta"].unsqueeze(-1)), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        low, high = reported[..., 0], reported[..., 1]
        return {"low": low, "log_gap": (high - low).log(), "sigma": reported[..., 2:4], "theta": reported[..., 4]}


class HiddenMarkov:
    """Two hidden states with ordered positive means; rows of the transition matrix on the simplex. The first state is unweighted."""

    support = {  # noqa: RUF012 - read only
        "theta1": (constraints.simplex, (2,)), "theta2": (constraints.simplex, (2,)), "low": constraints.positive, "gap": constraints.positive,
    }  # fmt: skip

    def __init__(self, x: Data) -> None:
        self.y = x["y"].float()

    @staticmethod
    def means(z: Mapping[str, Tensor]) -> Tensor:
        return torch.stack((z["low"], z["low"] + z["gap"]), -1)

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        mu = self.means(z)
        log_prior = Normal(3, 1).log_prob(mu[..., 0]) + Normal(10, 1).log_prob(mu[..., 1])
        transitions = torch.stack((z["theta1"], z["theta2"]), -2).log()
        emissions = Normal(mu.unsqueeze(-2), 1).log_prob(self.y.unsqueeze(-1))
        forward = emissions[..., 0, :]
        for step in range(1, len(self.y)):
            forward = torch.logsumexp(forward.unsqueeze(-1) + transitions, -2) + emissions[..., step, :]
        return log_prior + torch.logsumexp(forward, -1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((z["theta1"], z["theta2"], self.means(z)), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        low, high = reported[..., 4], reported[..., 5]
        return {"theta1": reported[..., :2], "theta2": reported[..., 2:4], "low": low, "gap": high - low}
