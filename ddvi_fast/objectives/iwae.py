"""The importance-weighted bound (Burda et al. 2016), with the doubly reparametrised gradient (Tucker et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks, ops
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.objectives.base import Objective, Progress, Terms
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.base import PosteriorSample
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.rng import Draws

LogWeights = Callable[[PosteriorSample], Tensor]


class IWAE(Objective):
    """Minus the importance-weighted bound: `-log mean_k w_k`, `log w = log p(x|z) + w_kl log_prior_ratio` (Burda et al. 2016).

    Term: `bound`, minus the bound, nats per example.

    Args:
        model: The latent-variable model.
        posterior: A posterior with a density.
        num_samples: Importance samples per row, K (int, default 10).
        doubly_reparametrised: Use the gradient of Tucker et al. (2019) for the posterior, whose signal-to-noise ratio does not fall as K
            grows (bool, default False). It scales each sample's path gradient by its normalized weight once more and has no score term.
        kl: Schedule of the KL weight. Default: a linear ramp to 1 over the first 40% of the epochs.
        guide: Smoothing of the prior while training. Default: `PriorGuide()`.

    Raises:
        InputError: If the posterior or the prior has no density, or if an argument is out of range.

    Example:
        >>> from ddvi_fast import likelihoods, networks, posteriors, priors
        >>> model = LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> objective = IWAE(model, posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2), num_samples=5)
        >>> objective(torch.rand(4, 5)).shape
        torch.Size([])
    """

    @_checks.typed
    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, num_samples: int = 10, doubly_reparametrised: bool = False,
        kl: KLSchedule = KLSchedule(), guide: PriorGuide = PriorGuide(),
    ) -> None:  # fmt: skip
        super().__init__()
        posterior.require_density(model.prior)
        _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        discrete = doubly_reparametrised and isinstance(posterior, ClassConditional)
        _checks.require(not discrete, "doubly_reparametrised", "False for a posterior that draws a class, which has no path gradient", True)
        self.model, self.posterior, self.kl, self.guide = model, posterior, kl, guide
        self.num_samples, self.doubly_reparametrised = num_samples, doubly_reparametrised

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        return self.wake_terms(x, self.posterior.encode(x, draws), progress, draws)

    def wake_terms(self, x: Tensor, encoded: Any, progress: Progress, draws: Draws) -> Terms:
        """Compute the terms of a batch whose `encoded` is the output of `posterior.encode(x, draws)`."""
        kl = self.kl.at(progress)

        def log_weights(sample: PosteriorSample) -> Tensor:
            log_prior_ratio = self.guide.log_prior_ratio(self.posterior, self.model.prior, sample, progress)
            return self.model.log_likelihood(x, sample.z) + kl * log_prior_ratio

        if self.doubly_reparametrised:
            bound = self._doubly_reparametrised(x, encoded, log_weights, kl, draws)
        else:
            bound = ops.log_mean_exp(log_weights(self.posterior.sample_encoded(encoded, self.num_samples, draws)), 0)
        return Terms({"bound": -bound}, {"bound": 1.0})

    def _doubly_reparametrised(self, x: Tensor, encoded: Any, log_weights: LogWeights, kl: float | Tensor, draws: Draws) -> Tensor:
        path = self.posterior.unwhitened_path(encoded, self.num_samples, draws)
        scaled, set_scale = _scale_gradient(path)
        weights = log_weights(self.posterior.push(scaled[-1], self.posterior.frozen_log_ratio(x, scaled, draws)))
        normalised = torch.softmax(weights.detach(), 0)
        # The score of q enters log w through kl * log_ratio only, so the second reparametrization applies to that share.
        set_scale(1 - kl + kl * normalised)
        # The value is the bound. The gradient is that of sum_k w~_k log w_k with w~ constant.
        surrogate = (normalised * weights).sum(0)
        return ops.log_mean_exp(weights.detach(), 0) + surrogate - surrogate.detach()


def _scale_gradient(path: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Copy `path` [S, K, N, D] and return a function that sets weights [K, N] by which the copy's gradient is multiplied."""
    weights: list[Tensor] = []
    scaled = path.clone()
    if scaled.requires_grad:
        scaled.register_hook(lambda gradient: gradient * weights[0].unsqueeze(-1))
    return scaled, weights.append
