"""Wake-sleep objective of denoising diffusion variational inference (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.iwae import IWAE
from ddvi_fast.objectives.pairs import PairFit, Sleep, with_pairs
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws


class WakeSleep(Objective):
    """Objective of denoising diffusion variational inference: a bound on data, and terms on pairs of latents and data (docs/method.md, section 3).

    Terms: those of the bound; `sleep` (nats for the loss ``kl`` and for tractable families, otherwise an error averaged over latent
    dimensions), `sleep_top` (-log q(y_T | x), nats), `sleep_class` (cross-entropy of q(c | x), nats) and `sleep_decoder` (-log p(x | z) of
    data, nats). Pairs are drawn without gradient, so the decoder learns from them only through `sleep_decoder`.

    With `Sleep(alternating=True)` wake and sleep updates share parameters: iterate over `updates` instead of calling the objective.

    Args:
        wake: The bound on data, an `ELBO` or `IWAE`. Its model draws the fantasies.
        sleep: Settings of the sleep term. Default: `Sleep()`.

    Raises:
        InputError: If a term has a weight that the posterior does not have.

    Example:
        >>> import torch
        >>> from ddvi_fast import denoisers, likelihoods, models, networks, posteriors, priors, schedules
        >>> model = models.LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> posterior = posteriors.Diffusion(
        ...     encoder=networks.MLP(5, [8], 4),
        ...     context_encoder=networks.MLP(5, [8], 3),
        ...     denoiser=denoisers.ResidualMLP(latent_dim=2, context_dim=3, num_steps=10),
        ...     schedule=schedules.make("cosine", 10),
        ... )
        >>> objective = WakeSleep(ELBO(model, posterior))
        >>> objective(torch.rand(4, 5)).backward()
    """

    @_checks.typed
    def __init__(self, wake: ELBO | IWAE, sleep: Sleep = Sleep()) -> None:
        super().__init__()
        self.wake, self.sleep = wake, sleep
        self.pair_fit = PairFit(wake.model, wake.posterior, sleep)

    @property
    def posterior(self) -> Posterior:
        """The posterior, which the bound and the sleep term share."""
        return self.wake.posterior

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        if self.sleep.alternating and self.pair_fit.active:
            groups["sleep"] = [parameter for parameter in self.posterior.parameters() if parameter.requires_grad]
        return groups

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        if not self.pair_fit.active:
            yield from self.wake.updates(x, progress, draws)
            return
        if not self.sleep.alternating:
            yield Update("wake", lambda: self.wake_terms(x, self.posterior.encode(x, draws), progress, draws))
            return
        yield Update("wake", lambda: self.wake.terms(x, progress, draws))
        for update in range(self.sleep.num_updates):
            # Every second importance-sample index: the noise of y_T takes the one between.
            yield Update("sleep", lambda update=update: self.pair_fit.terms(x, draws.importance(2 * update)))

    def wake_terms(self, x: Tensor, encoded: Any, progress: Progress, draws: Draws) -> Terms:
        """Compute the terms of a joint update, for a batch whose `encoded` is the output of `posterior.encode(x, draws)`."""
        return with_pairs(self.wake.wake_terms(x, encoded, progress, draws), self.pair_fit, x, encoded, draws)


DDVI = WakeSleep  # the name in the paper, kept as an alias
