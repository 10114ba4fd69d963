"""Denoising diffusion variational inference: the wake bound and the sleep regulariser (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed, ops, rng
from ddvi_fast._operator import without_autocast
from ddvi_fast.models import Fantasies
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.iwae import IWAE
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.rng import Draws

# Importance samples between a fantasy and what else is drawn for it, further apart than updates reach.
_OTHERS = 1 << 16  # the fantasy whose context it may be given
_CANDIDATES = 1 << 17  # the prior samples among which a datum finds its latent


@dataclass(frozen=True)
class Sleep:
    """The sleep term.

    Args:
        weight: of the denoising regression.
        top_weight: of `-log q(y_T | x)` on fantasies.
        loss: ``squared``, ``absolute`` or ``huber`` error of the network's prediction, or ``kl``: nats, each step weighted as in
            the divergence that the sleep term stands for, which also fits learned variances.
        alternating: separate sleep updates of the posterior after each wake update, instead of one joint update.
        num_updates: sleep updates a batch, when alternating.
        batch_factor: fantasies for each row of the batch.
        mixed: share of the fantasies whose chain sees the context of another one at the steps of little noise. There `y_t` alone tells
            where `z` is, and `p(x | z)` hardly varies over what is left open; a chain that looks at `x` all the same goes astray with
            the contexts of unseen data.
        mixed_noise: ratio of noise to signal at `y_t` up to which a step has little noise.
        data: share of the fantasies whose place a datum of the batch takes, with a latent of its own posterior: a prior sample, drawn
            among many by its likelihood (the wake phase of the posterior in reweighted wake-sleep, Bornschein and Bengio 2015). The
            bound alone moves a posterior by small steps; this tells it of modes far from where it is. For few latents, of which
            prior samples hit the posterior.
        candidates: those prior samples, for each row of the batch; the whole batch shares them.
    """

    weight: float = 0.2
    top_weight: float = 0.2
    loss: str = "squared"
    alternating: bool = False
    num_updates: int = 1
    batch_factor: int = 1
    mixed: float = 0.0
    mixed_noise: float = 0.05
    data: float = 0.0
    candidates: int = 4

    def __post_init__(self) -> None:
        _checks.choice(self.loss, (*ops.LOSSES, "kl"), "sleep.loss")
        for name in ("weight", "top_weight"):
            _checks.require(getattr(self, name) >= 0, f"sleep.{name}", "a number of at least 0", getattr(self, name))
        for name in ("mixed", "data"):
            _checks.require(0 <= getattr(self, name) <= 1, f"sleep.{name}", "a share from 0 to 1", getattr(self, name))
        _checks.require(self.mixed_noise > 0, "sleep.mixed_noise", "a positive number", self.mixed_noise)
        for name in ("num_updates", "batch_factor", "candidates"):
            _checks.require(getattr(self, name) >= 1, f"sleep.{name}", "at least 1", getattr(self, name))
        _checks.require(self.alternating or self.num_updates == 1, "sleep.num_updates", "1 unless sleep.alternating is true", self.num_updates)

    @property
    def active(self) -> bool:
        """Whether fantasies enter at all."""
        return self.weight > 0 or self.top_weight > 0


class DDVI(Objective):
    """The wake bound on data plus a wake-sleep regulariser on fantasies `z ~ p(z)`, `x ~ p(x | z)`.

    Terms: those of the bound, `sleep` (nats for the loss ``kl``, else an error averaged over latent dimensions) and
    `sleep_top` (-log q(y_T | x), nats).

    Args:
        wake: the bound on data, an `ELBO` or `IWAE` over a `Diffusion` posterior; its model draws the fantasies.
        sleep: how fantasies enter.

    The decoder takes no gradient from fantasies: they are drawn without one.
    """

    def __init__(self, wake: ELBO | IWAE, sleep: Sleep = Sleep()) -> None:
        super().__init__()
        _checks.require(isinstance(wake.posterior, Diffusion), "posterior", "a Diffusion posterior", type(wake.posterior).__name__)
        self.wake, self.sleep = wake, sleep

    @property
    def posterior(self) -> Diffusion:
        """The posterior that both halves train."""
        return self.wake.posterior

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        if self.sleep.alternating and self.sleep.active:
            groups["sleep"] = [parameter for parameter in self.posterior.parameters() if parameter.requires_grad]
        return groups

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        if not self.sleep.active:
            yield from self.wake.updates(x, progress, draws)
            return
        if not self.sleep.alternating:
            yield Update("wake", lambda: self._joint_terms(x, progress, draws))
            return
        yield Update("wake", lambda: self.wake.wake_terms(x, progress, draws))
        for update in range(self.sleep.num_updates):
            # Every second importance sample: the one between belongs to the noise of y_T.
            yield Update("sleep", lambda update=update: self.sleep_terms(x, draws.importance(2 * update)))

    def _joint_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        wake = self.wake.wake_terms(x, progress, draws)
        sleep = self.sleep_terms(x, draws)
        return Terms({**wake.values, **sleep.values}, {**wake.weights, **sleep.weights})

    def sleep_terms(self, like: Tensor, draws: Draws) -> Terms:
        """Fit the posterior to fantasies, `batch_factor` for each row of `like`."""
        # Row i of the run owns fantasies i * batch_factor and on, so that no two batches share any.
        draws = draws.spread(self.sleep.batch_factor)
        z, x = self._with_data(self.wake.model.simulate(len(like) * self.sleep.batch_factor, draws, like), like, draws)
        t = uniform_timesteps(draws, len(z), self.posterior.schedule.num_steps, z.device)
        x = x.view(len(x), *like.shape[1:])
        values, weights = {}, {}
        with fixed_statistics(self.posterior):  # fantasies are not data
            if self.sleep.weight > 0:
                context = self._mixed(self.posterior.encode_context(x, draws), t, like, draws)
                values["sleep"], weights["sleep"] = self._chain_loss(context, z, t, draws), self.sleep.weight
            if self.sleep.top_weight > 0:
                top = self.posterior.encode_top(x, draws)
                values["sleep_top"], weights["sleep_top"] = -self.posterior.top_log_prob(*top, z, draws), self.sleep.top_weight
        return Terms(values, weights)

    def _with_data(self, fantasies: Fantasies, data: Tensor, draws: Draws) -> Fantasies:
        """`fantasies`, some of them replaced by rows of the batch `data` [N, ...] with latents of their posteriors."""
        if self.sleep.data == 0:
            return fantasies
        data = data.flatten(1)
        latents = self._posterior_latents(data, draws.importance(_CANDIDATES))
        chosen = rng.uniform(draws.importance(_CANDIDATES), (len(fantasies.z), 1), rng.TIME, device=data.device) < self.sleep.data
        return Fantasies(
            torch.where(chosen, latents, fantasies.z), torch.where(chosen, data.repeat_interleave(self.sleep.batch_factor, 0), fantasies.x)
        )

    @torch.no_grad()
    def _posterior_latents(self, data: Tensor, draws: Draws) -> Tensor:
        """`batch_factor` latents [N * batch_factor, D] of the posterior of each datum [N, P], by importance sampling from the prior."""
        model = self.wake.model
        rows, first = distributed.whole_batch(len(data) * self.sleep.batch_factor, draws)
        candidates = model.prior.sample(rows * self.sleep.candidates, draws=first.spread(self.sleep.candidates), dtype=data.dtype, device=data.device)
        with without_autocast(data.device):  # narrow sums over pixels would be off by nats
            log_weights = model.likelihood.pairwise(model.decoder(candidates), data)  # [M, N]
        shares = torch.softmax(log_weights.mT, 1).cumsum(1).repeat_interleave(self.sleep.batch_factor, 0)
        level = rng.uniform(draws.importance(1), (len(shares), 1), rng.TIME, device=data.device)
        return candidates[torch.searchsorted(shares, level * shares[:, -1:]).squeeze(1)]

    def _mixed(self, context: Tensor | None, t: Tensor, like: Tensor, draws: Draws) -> Tensor | None:
        """`context` [N, C], with that of other fantasies in some of the rows whose step `t` [N] has little noise."""
        if context is None or self.sleep.mixed == 0:
            return context
        draws = draws.importance(_OTHERS)
        x = self.wake.model.simulate(len(t), draws, like).x
        others = self.posterior.encode_context(x.view(len(x), *like.shape[1:]), draws)
        schedule = self.posterior.schedule.detach()
        little = schedule.noise_variances <= self.sleep.mixed_noise**2 * schedule.alpha_bars
        chosen = rng.uniform(draws, (len(t), 1), rng.TIME, device=t.device) < self.sleep.mixed
        return torch.where(chosen & little[t].unsqueeze(1), others, context)

    def _chain_loss(self, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws) -> Tensor:
        if self.sleep.loss == "kl":
            return self.posterior.step_divergence(context, z, t, draws)
        return self.posterior.denoising_loss(context, z, t, draws, self.sleep.loss)


def uniform_timesteps(draws: Draws, rows: int, num_steps: int, device: torch.device) -> Tensor:
    """Uniform 0-based timesteps, int64 [rows]: row `i` depends on its draw alone."""
    return (rng.uniform(draws, (rows, 1), rng.TIME, device=device).squeeze(1) * num_steps).long().clamp(max=num_steps - 1)
