"""Time series: an autoregression of order 5, and returns with changing variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, Normal, constraints

Data = Mapping[str, Tensor]


class AutoRegression:
    """`y_t ~ N(alpha + sum_k beta_k y_(t-k), sigma^2)`, given the first K values."""

    def __init__(self, x: Data) -> None:
        order, y = int(x["K"]), x["y"]
        self.y = y[order:]
        self.past = torch.stack([y[order - lag : len(y) - lag] for lag in range(1, order + 1)])
        self.support = {"alpha": constraints.real, "beta": (constraints.real, (order,)), "sigma": constraints.positive}

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        alpha, sigma = z["alpha"].unsqueeze(-1), z["sigma"].unsqueeze(-1)
        log_prior = Normal(0, 10).log_prob(z["alpha"]) + Normal(0, 10).log_prob(z["beta"]).sum(-1) + Cauchy(0, 2.5).log_prob(z["sigma"])
        return log_prior + Normal(alpha + z["beta"].double() @ self.past, sigma).log_prob(self.y).sum(-1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((z["alpha"].unsqueeze(-1), z["beta"], z["sigma"].unsqueeze(-1)), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        return {"alpha": reported[..., 0], "beta": reported[..., 1:-1], "sigma": reported[..., -1]}


class Garch:
    """GARCH(1, 1): the variance of a value follows from the value and the variance before it.

    `beta1` is between 0 and `1 - alpha1`; the parameter is its share of that interval.
    """

    support = {  # noqa: RUF012 - read only
        "mu": constraints.real, "alpha0": constraints.positive, "alpha1": constraints.unit_interval, "share": constraints.unit_interval,
    }  # fmt: skip

    def __init__(self, x: Data) -> None:
        self.y, self.first = x["y"].float(), float(x["sigma1"])

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        beta1 = z["share"] * (1 - z["alpha1"])
        squares = (self.y - z["mu"].unsqueeze(-1)).square()
        variances = [torch.full_like(z["mu"], self.first**2)]
        for square in squares[..., :-1].unbind(-1):
            variances.append(z["alpha0"] + z["alpha1"] * square + beta1 * variances[-1])
        variance = torch.stack(variances, -1)
        return torch.log1p(-z["alpha1"]) - 0.5 * (variance.log() + squares / variance).sum(-1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.stack((z["mu"], z["alpha0"], z["alpha1"], z["share"] * (1 - z["alpha1"])), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        mu, alpha0, alpha1, beta1 = reported.unbind(-1)
        return {"mu": mu, "alpha0": alpha0, "alpha1": alpha1, "share": beta1 / (1 - alpha1)}
