"""Denoising diffusion variational inference: the wake bound and the sleep regulariser (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed, ops, rng
from ddvi_fast.models import Fantasies
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.iwae import IWAE
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.precision import without_autocast
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
        timesteps: steps of the chain that each fantasy teaches. More of them cost little beside the networks that read data, and thin
            priors, whose last steps must be precise, need many.
        mixed: share of the fantasies whose chain sees the context of another one at the steps of little noise. There `y_t` alone tells
            where `z` is, and `p(x | z)` hardly varies over what is left open; a chain that looks at `x` all the same goes astray with
            the contexts of unseen data.
        mixed_noise: ratio of noise to signal at `y_t` up to which a step has little noise.
        data: share of the fantasies whose place a datum of the batch takes, with a latent of its own posterior: a prior sample, drawn
            among many by its likelihood (the wake phase of the posterior in reweighted wake-sleep, Bornschein and Bengio 2015). The
            bound alone moves a posterior by small steps; this tells it of modes far from where it is. For few latents, of which
            prior samples hit the posterior.
        decoder: weight of `-log p(x | z)` at those latents, the one term of this phase whose gradient the decoder takes: that of the
            evidence estimated from the prior samples. Data for which the posterior has not found a place under the prior then find one.
        candidates: those prior samples, for each row of the batch; the whole batch shares them.
    """

    weight: float = 0.2
    top_weight: float = 0.2
    loss: str = "squared"
    alternating: bool = False
    num_updates: int = 1
    batch_factor: int = 1
    timesteps: int = 1
    mixed: float = 0.0
    mixed_noise: float = 0.05
    data: float = 0.0
    decoder: float = 0.0
    candidates: int = 4

    def __post_init__(self) -> None:
        _checks.choice(self.loss, (*ops.LOSSES, "kl"), "sleep.loss")
        for name in ("weight", "top_weight", "decoder"):
            _checks.require(getattr(self, name) >= 0, f"sleep.{name}", "a number of at least 0", getattr(self, name))
        for name in ("mixed", "data"):
            _checks.require(0 <= getattr(self, name) <= 1, f"sleep.{name}", "a share from 0 to 1", getattr(self, name))
        _checks.require(self.mixed_noise > 0, "sleep.mixed_noise", "a positive number", self.mixed_noise)
        for name in ("num_updates", "batch_factor", "timesteps", "candidates"):
            _checks.require(getattr(self, name) >= 1, f"sleep.{name}", "at least 1", getattr(self, name))
        taught = self.data > 0 and not self.alternating
        _checks.require(self.decoder == 0 or taught, "sleep.decoder", "0 unless data enter a joint update", self.decoder)
        _checks.require(self.alternating or self.num_updates == 1, "sleep.num_updates", "1 unless sleep.alternating is true", self.num_updates)

    @property
    def active(self) -> bool:
        """Whether fantasies enter at all."""
        return self.weight > 0 or self.top_weight > 0 or self.decoder > 0


class DDVI(Objective):
    """The wake bound on data plus a wake-sleep regulariser on fantasies `z ~ p(z)`, `x ~ p(x | z)`.

    Terms: those of the bound, `sleep` (nats for the loss ``kl``, else an error averaged over latent dimensions),
    `sleep_top` (-log q(y_T | x), nats) and `sleep_decoder` (-log p(x | z) of data, nats).

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
        """Fit the posterior to fantasies, `batch_factor` for each row of `like`, or to some of those rows themselves."""
        # Row i of the run owns fantasies i * batch_factor and on, so that no two batches share any.
        draws = draws.spread(self.sleep.batch_factor)
        fantasies = self.wake.model.simulate(len(like) * self.sleep.batch_factor, draws, like)
        if self.sleep.data == 0:
            return self._fit(fantasies, like, draws)
        data = self._data_with_latents(like.flatten(1), draws)
        chosen = rng.uniform(draws.importance(_CANDIDATES), (len(data.z), 1), rng.TIME, device=like.device) < self.sleep.data
        terms = self._fit(Fantasies(*(torch.where(chosen, *pair) for pair in zip(data, fantasies, strict=True))), like, draws)
        if self.sleep.decoder == 0:
            return terms
        value = -self.wake.model.log_likelihood(data.x, data.z)
        return Terms({**terms.values, "sleep_decoder": value}, {**terms.weights, "sleep_decoder": self.sleep.decoder})

    def _fit(self, fantasies: Fantasies, like: Tensor, draws: Draws) -> Terms:
        """The chain's loss on `fantasies`, whose data have the shape of the rows of `like`, and that of the top."""
        z, x = fantasies
        x = x.view(len(x), *like.shape[1:])
        values, weights = {}, {}
        with fixed_statistics(self.posterior):  # fantasies are not data
            if self.sleep.weight > 0:
                context = self.posterior.encode_context(x, draws)
                values["sleep"], weights["sleep"] = self._chain_loss(context, z, like, draws), self.sleep.weight
            if self.sleep.top_weight > 0:
                top = self.posterior.encode_top(x, draws)
                values["sleep_top"], weights["sleep_top"] = -self.posterior.top_log_prob(*top, z, draws), self.sleep.top_weight
        return Terms(values, weights)

    @torch.no_grad()
    def _data_with_latents(self, data: Tensor, draws: Draws) -> Fantasies:
        """Each datum [N, P] `batch_factor` times, with as many latents of its posterior, by importance sampling from the prior."""
        model, factor = self.wake.model, self.sleep.batch_factor
        rows, first = distributed.whole_batch(len(data) * factor, draws)
        first = first.spread(self.sleep.candidates).importance(_CANDIDATES)
        candidates = model.prior.sample(rows * self.sleep.candidates, draws=first, dtype=data.dtype, device=data.device)
        with without_autocast(data.device):  # narrow sums over pixels would be off by nats
            log_weights = model.likelihood.pairwise(model.decoder(candidates), data)  # [M, N]
        shares = torch.softmax(log_weights.mT, 1).cumsum(1).repeat_interleave(factor, 0)
        level = rng.uniform(draws.importance(_CANDIDATES + 1), (len(shares), 1), rng.TIME, device=data.device)
        chosen = torch.searchsorted(shares, level * shares[:, -1:]).squeeze(1)
        return Fantasies(candidates[chosen], data.repeat_interleave(factor, 0))

    def _chain_loss(self, context: Tensor | None, z: Tensor, like: Tensor, draws: Draws) -> Tensor:
        """The chain's loss [N] on latents `z` [N, D] given `context`, a mean over timesteps."""
        count, others = self.sleep.timesteps, self._others(context, len(z), like, draws)
        z, draws = z.repeat_interleave(count, 0), draws.spread(count)
        t = uniform_timesteps(draws, len(z), self.posterior.schedule.num_steps, z.device)
        if context is not None:
            context = context.repeat_interleave(count, 0)
        if others is not None:
            context = torch.where(self._mixed(t, draws), others.repeat_interleave(count, 0), context)
        if self.sleep.loss == "kl":
            loss = self.posterior.step_divergence(context, z, t, draws)
        else:
            loss = self.posterior.denoising_loss(context, z, t, draws, self.sleep.loss)
        return loss.view(-1, count).mean(1)

    def _others(self, context: Tensor | None, rows: int, like: Tensor, draws: Draws) -> Tensor | None:
        """Contexts of other fantasies, as many as `rows`, where some are to be mixed in."""
        if context is None or self.sleep.mixed == 0:
            return None
        draws = draws.importance(_OTHERS)
        x = self.wake.model.simulate(rows, draws, like).x
        return self.posterior.encode_context(x.view(rows, *like.shape[1:]), draws)

    def _mixed(self, t: Tensor, draws: Draws) -> Tensor:
        """Which rows [N, 1] see another's context: a share of those whose step `t` [N] has little noise."""
        schedule = self.posterior.schedule.detach()
        little = schedule.noise_variances <= self.sleep.mixed_noise**2 * schedule.alpha_bars
        chosen = rng.uniform(draws.importance(_OTHERS), (len(t), 1), rng.TIME, device=t.device) < self.sleep.mixed
        return chosen & little[t].unsqueeze(1)


def uniform_timesteps(draws: Draws, rows: int, num_steps: int, device: torch.device) -> Tensor:
    """Uniform 0-based timesteps, int64 [rows]: row `i` depends on its draw alone."""
    return (rng.uniform(draws, (rows, 1), rng.TIME, device=device).squeeze(1) * num_steps).long().clamp(max=num_steps - 1)
