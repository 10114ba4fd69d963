"""The evidence lower bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Part
from ddvi_fast.dense import on_device
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.objectives.base import Objective, Progress, Terms
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.base import PosteriorSample
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.rng import Draws


class ELBO(Objective):
    """Minus the evidence lower bound: `-E_q[ log p(x|z) ] - w_kl E_q[ log_prior_ratio ]` (docs/method.md, sections 3 and 7, without the sleep term).

    Terms: `reconstruction` = -log p(x|z) and `kl` = -log_prior_ratio, nats per example.

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

    @_checks.typed
    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, kl: KLSchedule = KLSchedule(), num_samples: int = 1,
        guide: PriorGuide = PriorGuide(), reweighted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        posterior.require_density(model.prior)
        _checks.at_least(1, num_samples=num_samples)
        _checks.require(num_samples > 1 or not reweighted, "num_samples", "at least 2 with reweighted=True", num_samples)
        self.model, self.posterior, self.kl, self.num_samples, self.guide = model, posterior, kl, num_samples, guide
        self.reweighted = reweighted

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        return self.wake_terms(x, self.posterior.encode(x, draws), progress, draws)

    def wake_terms(self, x: Tensor, encoded: Any, progress: Progress, draws: Draws) -> Terms:
        """Compute the terms of a batch whose `encoded` is the output of `posterior.encode(x, draws)`."""
        kl = self.kl.at(progress)
        if isinstance(self.posterior, ClassConditional):
            sample, log_class = self.posterior.sample_with_class(encoded, self.num_samples, draws)
        else:
            sample, log_class = self.draw(x, encoded, draws), None
        log_prior_ratio = self.guide.log_prior_ratio(self.posterior, self.model.prior, sample, progress)
        reweighted = self.reweighted and torch.is_grad_enabled()
        log_likelihood = self._reweighted(x, sample.z, kl * log_prior_ratio.detach()) if reweighted else self.model.log_likelihood(x, sample.z)
        reconstruction, divergence = bound(log_likelihood, log_prior_ratio, log_class if self.num_samples > 1 else None, kl)
        return Terms({"reconstruction": reconstruction, "kl": divergence}, {"reconstruction": 1.0, "kl": kl})

    def draw(self, x: Tensor, encoded: Any, draws: Draws) -> PosteriorSample:
        """Draw the posterior samples of the bound, [K, N, D]."""
        return self.posterior.sample_encoded(encoded, self.num_samples, draws)

    def _reweighted(self, x: Tensor, z: Tensor, log_prior_ratio: Tensor) -> Tensor:
        """log p(x | z) [K, N] of samples `z` [K, N, D], whose mean's gradient for the decoder weights the samples by their importance."""
        leaf = z.detach().requires_grad_()
        log_likelihood = self.model.log_likelihood(x, leaf)
        (gradient,) = torch.autograd.grad(log_likelihood.sum(), leaf, retain_graph=True)
        value = log_likelihood.detach()
        shares = len(z) * torch.softmax(value + log_prior_ratio, 0)
        # Both summands after the value are zero: the first has the decoder's gradient, the second that of the samples.
        return value + shares * (log_likelihood - value) + ((z - z.detach()) * gradient).sum(-1)


def bound(log_likelihood: Tensor, log_prior_ratio: Tensor, log_class: Tensor | None, kl: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms [N] of the bound from log-likelihoods and log-ratios [K, N].

    Args:
        log_likelihood: `log p(x | z)` [K, N].
        log_prior_ratio: Log-ratios [K, N] with respect to it.
        log_class: Log-probabilities [K, N] of drawn classes, which get the score-function gradient of `zero_with_score` (None: no classes).
        kl: Weight of the log-ratios, of which the score depends.
    """
    values = (log_likelihood, log_prior_ratio, *([] if log_class is None else [log_class]))
    if on_device(log_likelihood) and all(value.dtype == torch.float32 and value.shape == log_likelihood.shape for value in values):
        return _fused_bound(log_likelihood, log_prior_ratio, log_class, kl)
    return _plain_bound(log_likelihood, log_prior_ratio, log_class, kl)


def _plain_bound(log_likelihood: Tensor, log_prior_ratio: Tensor, log_class: Tensor | None, kl: float | Tensor) -> tuple[Tensor, Tensor]:
    reconstruction = -log_likelihood.mean(0)
    if log_class is not None:
        reconstruction = reconstruction - zero_with_score(log_class, (log_likelihood + kl * log_prior_ratio).detach())
    return reconstruction, -log_prior_ratio.mean(0)


def _forward(log_likelihood: Tensor, log_prior_ratio: Tensor, log_class: Tensor | None, kl: float | Tensor) -> tuple[Tensor, Tensor]:
    return _backend.implementation("triton", "bound").forward(log_likelihood.contiguous(), log_prior_ratio.contiguous())


def _backward(inputs, results, upstream, needed):
    log_likelihood, log_prior_ratio, log_class, kl = inputs
    call = log_likelihood.contiguous(), log_prior_ratio.contiguous(), kl, log_class is not None
    return _backend.implementation("triton", "bound").backward(*upstream, *call)


_fused_bound = Part("Bound", _plain_bound, _forward, _backward)


def zero_with_score(log_class: Tensor, log_weights: Tensor) -> Tensor:
    """Return zeros [N] with the score-function gradient of the mean of `log_weights` [K, N] for the drawn classes, whose log-probabilities
    are `log_class` [K, N]. The baseline of a sample is the mean of the others, so that the gradient is unbiased (Kool et al. 2019).
    """
    count = len(log_weights)
    baseline = (log_weights.sum(0) - log_weights) / (count - 1)
    score = ((log_weights - baseline) * log_class).mean(0)
    return score - score.detach()
