"""The evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.weights import PriorGuide, following, kl_weight
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.base import PosteriorSample
from ddvi_fast.rng import Draws


@dataclass(frozen=True)
class KLSchedule:
    """Arguments of `kl_weight` that stay the same over a phase."""

    kind: str = "linear"
    weight: float = 1.0
    fraction: float = 0.4
    hold: float = 0.0
    whole_epochs: bool = False  # moves from epoch to epoch, not from step to step

    def at(self, progress: Progress) -> float | Tensor:
        """The weight, a scalar on the device in a recorded step."""
        return progress.varying(self._number)

    def _number(self, progress: Progress) -> float:
        epoch = math.floor(progress.epoch) if self.whole_epochs else progress.epoch
        return kl_weight(self.kind, epoch, progress.epochs, self.weight, fraction=self.fraction, hold=self.hold)


class ELBO(Objective):
    """Minimise `-E_q[ log p(x|z) ] - w_kl E_q[ log p(z) + log_ratio ]` (docs/method.md, section 3 without the sleep term).

    Terms: `reconstruction` = -log p(x|z) and `kl` = -(log p(z) + log_ratio), nats per example.

    Args:
        model: the latent-variable model.
        posterior: a family with a density.
        kl: how the KL weight moves.
        num_samples: importance samples a row, averaged.
        guide: how the prior enters while training.
        reweighted: the decoder takes its gradient from the importance-weighted bound of the same samples instead, as in reweighted
            wake-sleep (Bornschein and Bengio 2015): samples that the posterior should not have drawn then do not mislead it. The
            posterior's gradient, and the terms, stay those of the ELBO.

    Raises:
        InputError: no density, or `reweighted` with a single sample, whose weight is 1 whatever it is.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        posterior: Posterior,
        kl: KLSchedule = KLSchedule(),
        num_samples: int = 1,
        guide: PriorGuide = PriorGuide(),
        reweighted: bool = False,
    ) -> None:
        super().__init__()
        posterior.require_density()
        model.prior.require_density()
        _checks.require(num_samples > 1 or not reweighted, "num_samples", "at least 2, to be reweighted", num_samples)
        self.model, self.posterior, self.kl, self.num_samples, self.guide = model, posterior, kl, num_samples, guide
        self.reweighted = reweighted

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self.wake_terms(x, progress, draws))

    def draw(self, x: Tensor, draws: Draws) -> PosteriorSample:
        """The samples whose mean weight is the bound."""
        return self.posterior.sample(x, self.num_samples, draws)

    def wake_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        z, log_ratio = self.draw(x, draws)
        kl = self.kl.at(progress)
        if torch.is_grad_enabled() and (self.reweighted or self.guide.joint):
            log_likelihood, log_prior = self._apart(x, z, log_ratio.detach(), kl, progress)
        else:
            log_likelihood, log_prior = self.model.log_likelihood(x, z).mean(0), self.guide.log_prob(self.model.prior, z, progress)
        return Terms({"reconstruction": -log_likelihood, "kl": -(log_prior + log_ratio).mean(0)}, {"reconstruction": 1.0, "kl": kl})

    def _apart(self, x: Tensor, z: Tensor, log_ratio: Tensor, kl: float | Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The mean of log p(x|z) over samples `z` [K, N, D], [N], and log p(z) [K, N], where decoder and samples take gradients of their own."""
        leaf = z.detach().requires_grad_()
        log_likelihood = self.model.log_likelihood(x, leaf)
        if self.guide.joint:
            log_prior, limit = self.guide.blurred(self.model.prior, progress).log_prob(leaf), self.guide.limit_at(progress)
            followed = log_likelihood + kl * log_prior
        else:
            log_prior, limit = self.guide.log_prob(self.model.prior, z, progress), math.inf
            followed = log_likelihood
        (slope,) = torch.autograd.grad(followed.sum(), leaf, retain_graph=True)
        value, shares = log_likelihood.detach(), 1 / len(z)
        if self.reweighted:
            shares = torch.softmax(value + kl * (log_prior.detach() + log_ratio), 0)
        # What is added to the mean is zero: a gradient to the decoder, and one to the samples.
        return value.mean(0) + (shares * (log_likelihood - value)).sum(0) + following(z, slope, limit).mean(0), log_prior
