"""The importance-weighted bound (Burda et al. 2016), with the doubly reparametrised gradient (Tucker et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddvi_fast import _checks, ops
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.elbo import KLSchedule
from ddvi_fast.objectives.weights import PriorGuide
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws

LogWeights = Callable[[Tensor, Tensor], Tensor]  # (z, log_ratio) -> log w


class IWAE(Objective):
    """Minimise `-log mean_k w_k`, `log w = log p(x|z) + w_kl (log p(z) + log_ratio)`.

    Term: `bound`, nats per example.

    Args:
        model: the latent-variable model.
        posterior: a family with a density.
        num_samples: K.
        doubly_reparametrised: replace the posterior's gradient by the one whose signal does not fade as K grows: each
            sample's path gradient is scaled by its normalised weight once more, and the score term is left out.
        kl: how the KL weight moves.
        guide: how the prior enters while training.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        posterior: Posterior,
        num_samples: int = 10,
        doubly_reparametrised: bool = False,
        kl: KLSchedule = KLSchedule(),
        guide: PriorGuide = PriorGuide(),
    ) -> None:
        super().__init__()
        posterior.require_density()
        model.prior.require_density()
        _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        _checks.require(not guide.joint, "guide.joint", "false for an importance-weighted bound", guide.joint)
        self.model, self.posterior, self.kl, self.guide = model, posterior, kl, guide
        self.num_samples, self.doubly_reparametrised = num_samples, doubly_reparametrised

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self.wake_terms(x, progress, draws))

    def wake_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        kl = self.kl.at(progress)

        def log_weights(z: Tensor, log_ratio: Tensor) -> Tensor:
            return self.model.log_likelihood(x, z) + kl * (self.guide.log_prob(self.model.prior, z, progress) + log_ratio)

        bound = self._doubly_reparametrised if self.doubly_reparametrised else self._plain
        return Terms({"bound": -bound(x, log_weights, kl, draws)}, {"bound": 1.0})

    def _plain(self, x: Tensor, log_weights: LogWeights, kl: float | Tensor, draws: Draws) -> Tensor:
        return ops.log_mean_exp(log_weights(*self.posterior.sample(x, self.num_samples, draws)), 0)

    def _doubly_reparametrised(self, x: Tensor, log_weights: LogWeights, kl: float | Tensor, draws: Draws) -> Tensor:
        path = self.posterior.latent_path(self.posterior.encode(x, draws), self.num_samples, draws)
        scaled, set_scale = _scale_gradient(path)
        weights = log_weights(scaled[-1], self.posterior.frozen_log_ratio(x, scaled, draws))
        normalised = torch.softmax(weights.detach(), 0)
        # The score of q enters log w through kl * log_ratio alone, so only that share of it is reparametrised once more.
        set_scale(1 - kl + kl * normalised)
        # The value is the bound; the gradient is that of sum_k w~_k log w_k with w~ held fixed.
        surrogate = (normalised * weights).sum(0)
        return ops.log_mean_exp(weights.detach(), 0) + surrogate - surrogate.detach()


def _scale_gradient(path: Tensor):
    """`path` [S, K, N, D] unchanged, whose gradient is multiplied by weights [K, N] that are set after the forward pass."""
    weights: list[Tensor] = []
    scaled = path.clone()
    if scaled.requires_grad:
        scaled.register_hook(lambda gradient: gradient * weights[0].unsqueeze(-1))
    return scaled, weights.append
