"""Linear regressions: children's test scores, party identification, prices of diamonds, and simulated data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, Normal, StudentT, constraints

Data = Mapping[str, Tensor]


class Linear:
    """Regression `y ~ N(X beta, sigma^2)` with flat priors, unless a subclass has others.

    Only sums over the observations enter the likelihood: the residuals of the least-squares coefficients, and the triangular factor of X.

    Args:
        design: Matrix X [N, P].
        y: Observations [N].
    """

    def __init__(self, design: Tensor, y: Tensor) -> None:
        self.count = len(y)
        basis, self.factor = torch.linalg.qr(design)
        self.best = torch.linalg.solve_triangular(self.factor, (basis.T @ y).unsqueeze(1), upper=True).squeeze(1)
        self.rest = (y - design @ self.best).square().sum()
        self.support = {"beta": (constraints.real, (design.shape[1],)), "sigma": constraints.positive}

    def log_prior(self, beta: Tensor, sigma: Tensor) -> Tensor | float:
        """Compute the log-prior [K] of coefficients [K, P] and deviations [K] in nats, up to a constant."""
        return 0.0

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        beta, sigma = z["beta"].double(), z["sigma"].double()
        squares = self.rest + ((beta - self.best) @ self.factor.T).square().sum(-1)
        return self.log_prior(beta, sigma) - self.count * sigma.log() - 0.5 * squares / sigma.square()

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.cat((z["beta"], z["sigma"].unsqueeze(-1)), -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        return {"beta": reported[..., :-1], "sigma": reported[..., -1]}


class KidScore(Linear):
    """Test scores of children, given their mothers' education, intelligence and the product of the two."""

    def __init__(self, x: Data) -> None:
        school, intelligence = x["mom_hs"], x["mom_iq"]
        super().__init__(torch.stack((torch.ones_like(school), school, intelligence, school * intelligence), 1), x["kid_score"])

    def log_prior(self, beta: Tensor, sigma: Tensor) -> Tensor:
        return Cauchy(0, 2.5).log_prob(sigma)


class Election(Linear):
    """Party identification in the American national election study of 2000."""

    def __init__(self, x: Data) -> None:
        ages = [(x["age_discrete"] == age).double() for age in (2, 3, 4)]
        columns = [x["real_ideo"], x["race_adj"], *ages, x["educ1"], x["gender"], x["income"]]
        super().__init__(torch.stack((torch.ones_like(columns[0]), *columns), 1), x["partyid7"])


class Bayesian(Linear):
    """Simulated data with normal priors."""

    def __init__(self, x: Data) -> None:
        super().__init__(x["X"], x["y"])

    def log_prior(self, beta: Tensor, sigma: Tensor) -> Tensor:
        return Normal(0, 10).log_prob(beta).sum(-1) + Normal(0, 10).log_prob(sigma)


class Diamonds(Linear):
    """Logarithms of the prices of 5,000 diamonds, with 24 centered predictors and an intercept, the last of `beta`."""

    def __init__(self, x: Data) -> None:
        columns = x["X"][:, 1:]
        super().__init__(torch.cat((columns - columns.mean(0), torch.ones_like(columns[:, :1])), 1), x["Y"])

    def log_prior(self, beta: Tensor, sigma: Tensor) -> Tensor:
        return Normal(0, 1).log_prob(beta[..., :-1]).sum(-1) + StudentT(3, 8, 10).log_prob(beta[..., -1]) + StudentT(3, 0, 10).log_prob(sigma)
