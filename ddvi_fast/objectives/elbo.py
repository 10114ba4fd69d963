"""The evidence lower bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide, zero_with_gradient
from ddvi_fast.objectives.base import Objective, Progress, Terms
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.base import PosteriorSample
from ddvi_fast.rng import Draws


class ELBO(Objective):
    """Minus the evidence lower bound: `-E_q[ log p(x|z) ] - w_kl E_q[ log p(z) + log_ratio ]` (docs/method.md, section 3, without the sleep term).

    Terms: `reconstruction` = -log p(x|z) and `kl` = -(log p(z) + log_ratio), nats per example.

    Args:
        model: The latent-variable model.
        posterior: A posterior with a density.
        kl: Schedule of the KL weight. Default: a linear ramp to 1 over the first 40% of the epochs.
        num_samples: Posterior samples per row, averaged (int, default 1).
        guide: Smoothing of the prior while training. Default: `PriorGuide()`.
        reweighted: Train the decoder by the importance-weighted bound of the same samples, as in reweighted wake-sleep (Bornschein and
            Bengio 2015), so that unlikely samples do not mislead it (bool, default False). The posterior's gradient and the reported terms
            stay those of the ELBO.

    Raises:
        InputError: If the posterior or the prior has no density, or if `reweighted` is set with a single sample.

    Example:
        >>> from ddvi_fast import likelihoods, networks, posteriors, priors
        >>> model = LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> objective = ELBO(model, posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2))
        >>> objective(torch.rand(4, 5)).backward()
    """

    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, kl: KLSchedule = KLSchedule(), num_samples: int = 1,
        guide: PriorGuide = PriorGuide(), reweighted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        posterior.require_density()
        model.prior.require_density()
        _checks.require(num_samples > 1 or not reweighted, "num_samples", "at least 2 with reweighted=True", num_samples)
        self.model, self.posterior, self.kl, self.num_samples, self.guide = model, posterior, kl, num_samples, guide
        self.reweighted = reweighted

    def draw(self, x: Tensor, draws: Draws) -> PosteriorSample:
        """Draw the posterior samples of the bound, [K, N, D]."""
        return self.posterior.sample(x, self.num_samples, draws)

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        z, log_ratio = self.draw(x, draws)
        kl = self.kl.at(progress)
        if torch.is_grad_enabled() and (self.reweighted or self.guide.joint):
            log_likelihood, log_prior = self._with_separate_gradients(x, z, log_ratio.detach(), kl, progress)
        else:
            log_likelihood, log_prior = self.model.log_likelihood(x, z).mean(0), self.guide.log_prob(self.model.prior, z, progress)
        return Terms({"reconstruction": -log_likelihood, "kl": -(log_prior + log_ratio).mean(0)}, {"reconstruction": 1.0, "kl": kl})

    wake_terms = terms  # the bound on data is the wake part of `WakeSleep`

    def _with_separate_gradients(self, x: Tensor, z: Tensor, log_ratio: Tensor, kl: float | Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """Mean of log p(x|z) over samples `z` [K, N, D], [N], and log p(z) [K, N], with separate gradients for the decoder and for the samples."""
        leaf = z.detach().requires_grad_()
        log_likelihood = self.model.log_likelihood(x, leaf)
        if self.guide.joint:
            log_prior, limit = self.guide.blurred(self.model.prior, progress).log_prob(leaf), self.guide.limit_at(progress)
            followed = log_likelihood + kl * log_prior
        else:
            log_prior, limit = self.guide.log_prob(self.model.prior, z, progress), math.inf
            followed = log_likelihood
        (gradient,) = torch.autograd.grad(followed.sum(), leaf, retain_graph=True)
        value, shares = log_likelihood.detach(), 1 / len(z)
        if self.reweighted:
            shares = torch.softmax(value + kl * (log_prior.detach() + log_ratio), 0)
        # Both summands after the mean are zero: the first has the decoder's gradient, the second that of the samples.
        return value.mean(0) + (shares * (log_likelihood - value)).sum(0) + zero_with_gradient(z, gradient, limit).mean(0), log_prior
