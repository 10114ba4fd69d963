"""Eight schools with the effects in units of their spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, Normal, constraints


class EightSchools:
    """Effects `theta = mu + tau eta`, measured with known errors."""

    support = {"eta": (constraints.real, (8,)), "mu": constraints.real, "tau": constraints.positive}  # noqa: RUF012 - read only

    def __init__(self, x: Mapping[str, Tensor]) -> None:
        self.y, self.sigma = x["y"].float(), x["sigma"].float()

    @staticmethod
    def effects(z: Mapping[str, Tensor]) -> Tensor:
        return z["mu"].unsqueeze(-1) + z["tau"].unsqueeze(-1) * z["eta"]

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        log_prior = Normal(0, 1).log_prob(z["eta"]).sum(-1) + Normal(0, 5).log_prob(z["mu"]) + Cauchy(0, 5).log_prob(z["tau"])
        return log_prior + Normal(self.effects(z), self.sigma).log_prob(self.y).sum(-1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((self.effects(z), z["mu"].unsqueeze(-1), z["tau"].unsqueeze(-1)), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        theta, mu, tau = reported.split((8, 1, 1), -1)
        return {"eta": (theta - mu) / tau, "mu": mu.squeeze(-1), "tau": tau.squeeze(-1)}
