"""Eight schools (Rubin 1981): a hierarchical model with named parameters, one of them positive, and a single data set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal, constraints

from ddvi_fast.inference import Architecture, FittedPosterior, Training, fit_posterior

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


class EightSchools:
    """Effects `theta_j = mu + tau eta_j` around a common mean, measured with known errors.

    The parameter is `eta` instead of `theta`, whose joint posterior with `tau` is a funnel that is hard to sample.
    """

    support = {"mu": constraints.real, "tau": constraints.positive, "eta": (constraints.real, (8,))}  # noqa: RUF012 - read only

    def log_joint(self, x: Tensor, z: dict[str, Tensor]) -> Tensor:
        log_prior = Normal(0, 5).log_prob(z["mu"]) + HalfCauchy(5).log_prob(z["tau"]) + Normal(0, 1).log_prob(z["eta"]).sum(-1)
        return log_prior + Normal(self.effects(z), ERRORS).log_prob(x).sum(-1)

    @staticmethod
    def effects(z: dict[str, Tensor]) -> Tensor:
        """Return the effects `theta` [..., 8] of parameters `z`."""
        return z["mu"].unsqueeze(-1) + z["tau"].unsqueeze(-1) * z["eta"]


def fit(x: Tensor = EFFECTS, training: Training = Training(), architecture: Architecture = Architecture(), seed: int = 0) -> FittedPosterior:
    """Fit the posterior of the eight measured effects."""
    model = EightSchools()
    return fit_posterior(model, x, support=model.support, training=training, architecture=architecture, seed=seed)


if __name__ == "__main__":
    posterior = fit()
    weighted = posterior.importance_sample()
    print(posterior, weighted, sep="\n")
    print("school effects:", [round(effect, 1) for effect in weighted.mean(EightSchools.effects(weighted.z)).tolist()])
