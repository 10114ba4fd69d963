"""Pairs of latents and data to which posteriors and decoders are fitted (docs/method.md, sections 3 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddvi_fast import _checks, distributed, ops, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.base import Terms
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.posteriors.base import Encoded
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion
from ddvi_fast.precision import without_autocast
from ddvi_fast.rng import Draws

_FEW = 3  # coordinates up to which prior samples hit the posterior of a datum


@_checks.typed
@dataclass(frozen=True)
class Sleep:
    """Settings of the terms that fit the posterior, and the decoder, to pairs of latents and data (docs/method.md, sections 3 and 7).

    The ELBO (reverse KL) is mode-seeking and can miss modes; these terms are mass-covering. A pair is a fantasy, `z ~ p(z)`, `x ~ p(x | z)`,
    or a row of data with a prior sample drawn in proportion to its likelihood, as in the wake phase of the posterior in reweighted wake-sleep
    (Bornschein and Bengio 2015). The latter is for few latents, where prior samples hit the posterior.

    Args:
        weight: Weight of the chain's loss, or of `-log q(z | x)` for a family with a tractable density (float, default 0.25).
        top_weight: Weight of `-log q(y_T | x)`, in the encoder's frame of that of the frame's Gaussian (float, default 0.25).
        loss: Loss of the chain (default ``kl``). ``kl``: the KL divergence from the noising process in nats, which also trains learned
            variances. ``squared``, ``absolute`` or ``huber``: error of the network's prediction.
        alternating: Take separate sleep updates of the posterior after each wake update, instead of one joint update (bool, default False).
        num_updates: Sleep updates per batch (int, default 1). More than 1 needs `alternating`.
        batch_factor: Fantasies per row of the batch (int, default 1). More than 1 needs fantasies.
        timesteps: Timesteps at which the chain's loss is evaluated for each pair (int, default 1); the cost is small beside that of the
            encoders.
        data: Take pairs of data instead of fantasies (bool). Default: for a posterior of at most 3 coordinates with a joint update and a
            `batch_factor` of 1.
        decoder: Weight of `-log p(x | z)` at the pairs of data (float, default 1), the only one of these terms that trains the decoder.
        classes: Weight of the cross-entropy of q(c | x) on the classes of the pairs, for a `ClassConditional` (float, default 10).
        candidates: Prior samples per row of the batch among which latents of data are drawn; the whole batch shares them (int, default 4).

    Raises:
        InputError: If a value is out of range, or if two values do not fit together.

    Example:
        >>> Sleep(weight=0.5).timesteps
        1
    """

    weight: float = 0.25
    top_weight: float = 0.25
    loss: str = "kl"
    alternating: bool = False
    num_updates: int = 1
    batch_factor: int = 1
    timesteps: int = 1
    data: bool | None = None
    decoder: float = 1.0
    classes: float = 10.0
    candidates: int = 4

    def __post_init__(self) -> None:
        _checks.choice(self.loss, (*ops.LOSSES, "kl"), "sleep.loss")
        for name in ("weight", "top_weight", "decoder", "classes"):
            _checks.require(getattr(self, name) >= 0, f"sleep.{name}", "a number of at least 0", getattr(self, name))
        for name in ("num_updates", "batch_factor", "timesteps", "candidates"):
            _checks.require(getattr(self, name) >= 1, f"sleep.{name}", "at least 1", getattr(self, name))
        _checks.require(not (self.data and self.alternating), "sleep.data", "false with sleep.alternating", True)
        _checks.require(self.alternating or self.num_updates == 1, "sleep.num_updates", "1 unless sleep.alternating is true", self.num_updates)
        _checks.require(not self.data or self.batch_factor == 1, "sleep.batch_factor", "1 with sleep.data", self.batch_factor)


class Pairs(NamedTuple):
    """Latents and data to which the posterior is fitted.

    Attributes:
        z: Latents [N, D].
        x: Data [N, P].
        u: The latents in the coordinates that the posterior has outside the encoder's frame [N, U].
        labels: Classes, int64 [N], or None.
        class_probs: Probabilities of the classes [N, C], or None.
    """

    z: Tensor
    x: Tensor
    u: Tensor
    labels: Tensor | None
    class_probs: Tensor | None


class PairFit:
    """Terms that fit a posterior, and the decoder of its model, to pairs.

    Args:
        model: The latent-variable model. It draws the fantasies.
        posterior: The posterior.
        sleep: Settings of the terms.

    Raises:
        InputError: If a term has a weight that the posterior does not have.
    """

    @_checks.typed
    def __init__(self, model: LatentVariableModel, posterior: Posterior, sleep: Sleep) -> None:
        self.model, self.posterior, self.sleep = model, posterior, sleep
        self.by_class = isinstance(posterior, ClassConditional)
        self.family = posterior.family if self.by_class else posterior
        few = self.family.latent_dim <= _FEW and not sleep.alternating and sleep.batch_factor == 1
        self.from_data = few if sleep.data is None else sleep.data
        chain, name = isinstance(self.family, Diffusion), type(self.family).__name__
        _checks.require(chain or self.family.tractable or sleep.weight == 0, "sleep.weight", "0 for a posterior without a tractable density", name)
        _checks.require(chain or sleep.top_weight == 0, "sleep.top_weight", "0 without a chain", name)
        separate = isinstance(self.family, ClassDiffusion) and sleep.weight > 0
        _checks.require(not separate, "sleep.weight", "0 for a ClassDiffusion, whose pairs would need equally many rows of each class", name)

    @property
    def active(self) -> bool:
        """Whether any term has a weight."""
        sleep = self.sleep
        return sleep.weight > 0 or sleep.top_weight > 0 or (sleep.decoder > 0 and self.from_data) or (sleep.classes > 0 and self.by_class)

    def terms(self, like: Tensor, draws: Draws, encoded: Any = None) -> Terms:
        """Compute the terms of a batch.

        Args:
            like: The batch of data [N, ...].
            draws: Position of the batch's first row in the random stream.
            encoded: Output of `posterior.encode(like, draws)`, if it exists (default None).
        """
        # Row i of the run has the fantasies from i * batch_factor on, so that no two batches share any.
        draws = draws.spread(self.sleep.batch_factor)
        if self.from_data:
            pairs = self._pairs_of_data(like.flatten(1), draws)
            return self._fit(pairs, self.posterior.encode(like, draws) if encoded is None else encoded, draws)
        pairs = self._fantasies(like, draws)
        with fixed_statistics(self.posterior):  # statistics of batch normalization come from data only
            return self._fit(pairs, self.posterior.encode(pairs.x.view(len(pairs.x), *like.shape[1:]), draws), draws)

    def _fit(self, pairs: Pairs, encoded: Any, draws: Draws) -> Terms:
        """The losses on `pairs`, whose data have the encoders' output `encoded`."""
        sleep, family, values, weights = self.sleep, self.family, {}, {}
        if self.by_class and sleep.classes > 0:
            values["sleep_class"], weights["sleep_class"] = -(pairs.class_probs * encoded.log_probs).sum(1), sleep.classes
        if self.by_class:
            encoded = self.posterior.family_of_class(encoded, pairs.labels)
        if sleep.weight > 0:
            values["sleep"], weights["sleep"] = self._family_loss(family, encoded, pairs.u, draws), sleep.weight
        if sleep.top_weight > 0:
            values["sleep_top"], weights["sleep_top"] = -family.start_log_prob(encoded, pairs.u, draws), sleep.top_weight
        if sleep.decoder > 0 and self.from_data:
            values["sleep_decoder"], weights["sleep_decoder"] = -self.model.log_likelihood(pairs.x, pairs.z), sleep.decoder
        return Terms(values, weights)

    def _family_loss(self, family: Posterior, encoded: Any, u: Tensor, draws: Draws) -> Tensor:
        if not isinstance(family, Diffusion):
            return -family.log_density(encoded, u)
        v = family.whitened(encoded, u).detach()
        count = self.sleep.timesteps
        v, draws = repeated(v, count), draws.spread(count)
        t = uniform_timesteps(draws, len(v), family.num_active_steps, v.device)
        encoded = type(encoded)(*(None if part is None else repeated(part, count) for part in encoded))
        return chain_loss(family, encoded, v, t, draws, self.sleep.loss).view(-1, count).mean(1)

    def _fantasies(self, like: Tensor, draws: Draws) -> Pairs:
        """`batch_factor` fantasies per row of `like`."""
        made = self.model.simulate(len(like) * self.sleep.batch_factor, draws, like, joint=self.posterior.pushes and not self.by_class)
        probs = one_hot(made.labels, self.posterior.num_classes).to(made.z) if self.by_class else None
        return Pairs(made.z, made.x, made.noise if self.posterior.pushes else made.z, made.labels, probs)

    @torch.no_grad()
    def _pairs_of_data(self, data: Tensor, draws: Draws) -> Pairs:
        """Each row of `data` [N, P] with latents of its posterior, by importance resampling of prior samples that the whole batch shares."""
        model, pushes = self.model, self.posterior.pushes
        rows, first = distributed.whole_batch(len(data), draws)
        first = first.spread(self.sleep.candidates).lane("candidates")
        options = {"joint": pushes and not self.by_class, "dtype": data.dtype, "device": data.device}
        candidates = model.prior.draw(rows * self.sleep.candidates, first, **options)
        with without_autocast(data.device):  # in bf16, sums over pixels would be wrong by nats
            log_weights = model.likelihood.pairwise(model.decoder(candidates.z), data)  # [M, N]
        shares = torch.softmax(log_weights.mT, 1)
        level = rng.uniform(draws.lane("levels"), (len(shares), 1), rng.TIME, device=data.device)
        total = shares.cumsum(1)
        chosen = torch.searchsorted(total, level * total[:, -1:]).squeeze(1).clamp(max=len(candidates.z) - 1)  # NaN is beyond the end
        z, u = candidates.z[chosen], (candidates.noise if pushes else candidates.z)[chosen]
        if not self.by_class:
            return Pairs(z, data, u, None, None)
        return Pairs(z, data, u, candidates.labels[chosen], shares @ one_hot(candidates.labels, self.posterior.num_classes).to(shares))


def repeated(rows: Tensor, count: int) -> Tensor:
    """Each row `count` times in a row."""
    return rows if count == 1 else rows.repeat_interleave(count, 0)


def chain_loss(posterior: Diffusion, encoded: Encoded, z: Tensor, t: Tensor, draws: Draws, loss: str) -> Tensor:
    """Compute the loss `Sleep.loss` [N] of the chain on latents `z` [N, D] at 0-based timesteps `t` [N]."""
    more = {"encoded": encoded} if posterior.informed_steps else {}
    if loss == "kl":
        return posterior.step_divergence(encoded.context, z, t, draws, **more)
    return posterior.denoising_loss(encoded.context, z, t, draws, loss, **more)


def uniform_timesteps(draws: Draws, rows: int, num_steps: int, device: torch.device) -> Tensor:
    """Draw uniform 0-based timesteps, int64 [rows]; row `i` depends on draw `first_index + i` only."""
    return rng.integers(draws, rows, num_steps, rng.TIME, device)


def with_pairs(terms: Terms, pair_fit: PairFit | None, x: Tensor, encoded: Any, draws: Draws) -> Terms:
    """Return `terms` and those of `pair_fit`, if there is one with a weight; the other arguments are those of `PairFit.terms`."""
    if pair_fit is None or not pair_fit.active:
        return terms
    more = pair_fit.terms(x, draws, encoded)
    return Terms({**terms.values, **more.values}, {**terms.weights, **more.weights})
