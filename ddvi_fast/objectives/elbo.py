"""The evidence lower bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.weights import PriorGuide, kl_weight
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

    def at(self, progress: Progress) -> float | Tensor:
        """The weight, a scalar on the device in a recorded step."""
        return progress.varying(self._number)

    def _number(self, progress: Progress) -> float:
        return kl_weight(self.kind, progress.epoch, progress.epochs, self.weight, fraction=self.fraction, hold=self.hold)


class ELBO(Objective):
    """Minimise `-E_q[ log p(x|z) ] - w_kl E_q[ log p(z) + log_ratio ]` (METHOD section 3 without the sleep term).

    Terms: `reconstruction` = -log p(x|z) and `kl` = -(log p(z) + log_ratio), nats per example.

    Args:
        model: the latent-variable model.
        posterior: a family with a density.
        kl: how the KL weight moves.
        num_samples: importance samples a row, averaged.
        guide: how the prior enters while training.
    """

    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, kl: KLSchedule = KLSchedule(), num_samples: int = 1, guide: PriorGuide = PriorGuide()
    ) -> None:
        super().__init__()
        posterior.require_density()
        model.prior.require_density()
        self.model, self.posterior, self.kl, self.num_samples, self.guide = model, posterior, kl, num_samples, guide

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self.wake_terms(x, progress, draws))

    def draw(self, x: Tensor, draws: Draws) -> PosteriorSample:
        """The samples whose mean weight is the bound."""
        return self.posterior.sample(x, self.num_samples, draws)

    def wake_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        z, log_ratio = self.draw(x, draws)
        log_prior = self.guide.log_prob(self.model.prior, z, progress)
        values = {
            "reconstruction": -self.model.log_likelihood(x, z).mean(0),
            "kl": -(log_prior + log_ratio).mean(0),
        }
        return Terms(values, {"reconstruction": 1.0, "kl": self.kl.at(progress)})
