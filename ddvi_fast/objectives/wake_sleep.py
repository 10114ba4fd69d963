"""Wake-sleep objective of denoising diffusion variational inference (docs/method.md, section 3)."""

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

# Offsets of the importance-sample index, beyond every index that updates use.


@dataclass(frozen=True)
class Sleep:
    """Settings of the sleep term, which fits the posterior to fantasies `z ~ p(z)`, `x ~ p(x | z)` (docs/method.md, section 3).

    The ELBO (reverse KL) is mode-seeking and can miss modes; the sleep term is a mass-covering forward KL.

    Args:
        weight: Weight of the chain's loss on fantasies (float, default 0.25).
        top_weight: Weight of `-log q(y_T | x)` on fantasies (float, default 0.25).
        loss: Loss of the chain (default ``kl``). ``kl``: the KL divergence from the noising process in nats, which also trains learned
            variances. ``squared``, ``absolute`` or ``huber``: error of the network's prediction.
        alternating: Take separate sleep updates of the posterior after each wake update, instead of one joint update (bool, default False).
        num_updates: Sleep updates per batch (int, default 1). More than 1 needs `alternating`.
        batch_factor: Fantasies per row of the batch (int, default 1).
        timesteps: Timesteps at which the chain's loss is evaluated for each fantasy (int, default 1). Narrow priors need many, because the
            last steps must be precise; the cost is small beside that of the encoders.
        mixed: Fraction of the fantasies that get another fantasy's context at timesteps with little noise (float in [0, 1], default 0).
            There `y_t` alone determines `z`, and a chain that learns to rely on `x` generalizes badly to unseen data.
        mixed_noise: Largest ratio of noise to signal of `y_t` at which contexts are mixed (float, default 0.05).
        data: Fraction of the fantasies that are replaced by data of the batch (float in [0, 1], default 0), each with a prior sample drawn
            in proportion to its likelihood, as in the wake phase of the posterior in reweighted wake-sleep (Bornschein and Bengio 2015).
            Useful for few latents, where prior samples hit the posterior.
        decoder: Weight of `-log p(x | z)` at those latents of data (float, default 0), the only sleep term that trains the decoder. It needs
            `data` and a joint update.
        candidates: Prior samples per row of the batch among which latents of data are drawn; the whole batch shares them (int, default 4).

    Raises:
        InputError: If a value is out of range, or if two values do not fit together.

    Example:
        >>> Sleep(weight=0.5).active
        True
    """

    weight: float = 0.25
    top_weight: float = 0.25
    loss: str = "kl"
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
        joint_data = self.data > 0 and not self.alternating
        _checks.require(self.decoder == 0 or joint_data, "sleep.decoder", "0 unless sleep.data > 0 and sleep.alternating is false", self.decoder)
        _checks.require(self.alternating or self.num_updates == 1, "sleep.num_updates", "1 unless sleep.alternating is true", self.num_updates)

    @property
    def active(self) -> bool:
        """Whether any sleep term has a weight."""
        return self.weight > 0 or self.top_weight > 0 or self.decoder > 0


class WakeSleep(Objective):
    """The objective of denoising diffusion variational inference: the wake bound on data and the sleep term on fantasies (docs/method.md, section 3).

    Terms: those of the bound; `sleep` (nats for the loss ``kl``, otherwise an error averaged over latent dimensions), `sleep_top`
    (-log q(y_T | x), nats) and `sleep_decoder` (-log p(x | z) of data, nats). Fantasies are drawn without gradient, so the decoder learns
    from them only through `sleep_decoder`.

    With `Sleep(alternating=True)` wake and sleep updates share parameters: iterate over `updates` instead of calling the objective.

    Args:
        wake: The bound on data, an `ELBO` or `IWAE` of a `Diffusion` posterior. Its model draws the fantasies.
        sleep: Settings of the sleep term. Default: `Sleep()`.

    Raises:
        InputError: If the posterior is not a `Diffusion`.

    Example:
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

    def __init__(self, wake: ELBO | IWAE, sleep: Sleep = Sleep()) -> None:
        super().__init__()
        _checks.require(isinstance(wake.posterior, Diffusion), "posterior", "a Diffusion posterior", type(wake.posterior).__name__)
        self.wake, self.sleep = wake, sleep

    @property
    def posterior(self) -> Diffusion:
        """The posterior, which the bound and the sleep term share."""
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
            # Every second importance-sample index: the noise of y_T takes the one between.
            yield Update("sleep", lambda update=update: self.sleep_terms(x, draws.importance(2 * update)))

    def _joint_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        wake = self.wake.wake_terms(x, progress, draws)
        sleep = self.sleep_terms(x, draws)
        return Terms({**wake.values, **sleep.values}, {**wake.weights, **sleep.weights})

    def sleep_terms(self, like: Tensor, draws: Draws) -> Terms:
        """Compute the sleep terms of `batch_factor` fantasies per row.

        Args:
            like: The batch of data [N, ...]; with `Sleep.data` some of its rows replace fantasies.
            draws: Position of the batch's first row in the random stream.
        """
        # Row i of the run has the fantasies from i * batch_factor on, so that no two batches share any.
        draws = draws.spread(self.sleep.batch_factor)
        fantasies = self.wake.model.simulate(len(like) * self.sleep.batch_factor, draws, like)
        if self.sleep.data == 0:
            return self._fit(fantasies, like, draws)
        data = self._data_with_latents(like.flatten(1), draws)
        chosen = rng.uniform(draws.lane("candidates"), (len(data.z), 1), rng.TIME, device=like.device) < self.sleep.data
        mixed = Fantasies(torch.where(chosen, data.z, fantasies.z), torch.where(chosen, data.x, fantasies.x))
        terms = self._fit(mixed, like, draws)
        if self.sleep.decoder == 0:
            return terms
        value = -self.wake.model.log_likelihood(data.x, data.z)
        return Terms({**terms.values, "sleep_decoder": value}, {**terms.weights, "sleep_decoder": self.sleep.decoder})

    def _fit(self, fantasies: Fantasies, like: Tensor, draws: Draws) -> Terms:
        """The losses of the chain and of its start on `fantasies`, whose data get the shape of the rows of `like`."""
        z, x = fantasies.z, fantasies.x
        x = x.view(len(x), *like.shape[1:])
        values, weights = {}, {}
        with fixed_statistics(self.posterior):  # statistics of batch normalization come from data only
            if self.sleep.weight > 0:
                context = self.posterior.encode_context(x, draws)
                values["sleep"], weights["sleep"] = self._chain_loss(context, z, like, draws), self.sleep.weight
            if self.sleep.top_weight > 0:
                top = self.posterior.encode_top(x, draws)
                values["sleep_top"], weights["sleep_top"] = -self.posterior.top_log_prob(*top, z, draws), self.sleep.top_weight
        return Terms(values, weights)

    @torch.no_grad()
    def _data_with_latents(self, data: Tensor, draws: Draws) -> Fantasies:
        """Each row of `data` [N, P] `batch_factor` times, with latents of its posterior by importance resampling of prior samples."""
        model, factor = self.wake.model, self.sleep.batch_factor
        rows, first = distributed.whole_batch(len(data) * factor, draws)
        first = first.spread(self.sleep.candidates).lane("candidates")
        candidates = model.prior.sample(rows * self.sleep.candidates, draws=first, dtype=data.dtype, device=data.device)
        with without_autocast(data.device):  # in bf16, sums over pixels would be wrong by nats
            log_weights = model.likelihood.pairwise(model.decoder(candidates), data)  # [M, N]
        shares = torch.softmax(log_weights.mT, 1).cumsum(1).repeat_interleave(factor, 0)
        level = rng.uniform(draws.lane("levels"), (len(shares), 1), rng.TIME, device=data.device)
        chosen = torch.searchsorted(shares, level * shares[:, -1:]).squeeze(1)
        return Fantasies(candidates[chosen], data.repeat_interleave(factor, 0))

    def _chain_loss(self, context: Tensor | None, z: Tensor, like: Tensor, draws: Draws) -> Tensor:
        """The chain's loss [N] on latents `z` [N, D] given `context` [N, C], averaged over timesteps."""
        count, others = self.sleep.timesteps, self._others(context, len(z), like, draws)
        z, draws = z.repeat_interleave(count, 0), draws.spread(count)
        t = uniform_timesteps(draws, len(z), self.posterior.schedule.num_steps, z.device)
        if context is not None:
            context = context.repeat_interleave(count, 0)
        if others is not None:
            context = torch.where(self._mixed(t, draws), others.repeat_interleave(count, 0), context)
        return chain_loss(self.posterior, context, z, t, draws, self.sleep.loss).view(-1, count).mean(1)

    def _others(self, context: Tensor | None, rows: int, like: Tensor, draws: Draws) -> Tensor | None:
        """Contexts [rows, C] of other fantasies, or None if none are mixed in."""
        if context is None or self.sleep.mixed == 0:
            return None
        draws = draws.lane("others")
        x = self.wake.model.simulate(rows, draws, like).x
        return self.posterior.encode_context(x.view(rows, *like.shape[1:]), draws)

    def _mixed(self, t: Tensor, draws: Draws) -> Tensor:
        """Rows [N, 1] that get another fantasy's context: a random fraction of those whose timestep `t` [N] has little noise."""
        schedule = self.posterior.schedule.detach()
        little_noise = schedule.noise_variances <= self.sleep.mixed_noise**2 * schedule.alpha_bars
        chosen = rng.uniform(draws.lane("others"), (len(t), 1), rng.TIME, device=t.device) < self.sleep.mixed
        return chosen & little_noise[t].unsqueeze(1)


def chain_loss(posterior: Diffusion, context: Tensor | None, z: Tensor, t: Tensor, draws: Draws, loss: str) -> Tensor:
    """Compute the loss `Sleep.loss` [N] of the chain on latents `z` [N, D] at 0-based timesteps `t` [N]."""
    return posterior.step_divergence(context, z, t, draws) if loss == "kl" else posterior.denoising_loss(context, z, t, draws, loss)


def uniform_timesteps(draws: Draws, rows: int, num_steps: int, device: torch.device) -> Tensor:
    """Draw uniform 0-based timesteps, int64 [rows]; row `i` depends on draw `first_index + i` only."""
    return (rng.uniform(draws, (rows, 1), rng.TIME, device=device).squeeze(1) * num_steps).long().clamp(max=num_steps - 1)


DDVI = WakeSleep  # the name in the paper, kept as an alias
