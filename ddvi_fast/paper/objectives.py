"""Objectives of the released code's three stages (docs/method.md, section 3), for reproducing its numbers.

Reconstruction is a mean over pixels, the chain is deterministic, and the prior's density is a clamped kernel estimate. None of these
objectives is a bound.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast.models import Fantasies, LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.pairs import uniform_timesteps
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.priors import Prior
from ddvi_fast.released_scale import first_gaussian, log_var_excess, mean_matching, pixel_mean
from ddvi_fast.rng import Draws


class PriorFit(Objective):
    """Stage 1: fit an unconditional chain to prior samples. Term: `noise`, Huber error of the predicted noise."""

    def __init__(self, prior: Prior, posterior: Diffusion) -> None:
        super().__init__()
        _checks.require(posterior.denoiser.context_dim == 0, "posterior", "an unconditional chain", posterior)
        self.prior, self.posterior = prior, posterior

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"wake": list(self.posterior.denoiser.parameters())}

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: Terms({"noise": self.noise_loss(x, draws)}, {"noise": 1.0}))

    def noise_loss(self, like: Tensor, draws: Draws) -> Tensor:
        """Huber error on prior samples, one for each row of `like`, [N]."""
        z = self.prior.sample(len(like), draws=draws, dtype=like.dtype, device=like.device)
        t = uniform_timesteps(draws, len(z), self.posterior.schedule.num_steps, z.device)
        return ops.denoising_loss(z, t, None, self.posterior.denoiser, self.posterior.schedule, loss="huber", draws=draws)


class WarmUp(Objective):
    """Stage 2 (`diff_vae`): encoder to `y_T`, deterministic chain, decoder, together with the prior fit.

    Terms: `reconstruction` (mean over pixels), `kl` of `q(y_T | x)` to N(0, I) (nats), `noise`.
    """

    def __init__(self, model: LatentVariableModel, posterior: Diffusion, kl: KLSchedule) -> None:
        super().__init__()
        self.model, self.kl = model, kl
        self.prior_fit = PriorFit(model.prior, posterior)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return Objective.parameter_groups(self)

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self._terms(x, progress, draws))

    def _terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        posterior = self.prior_fit.posterior
        encoded = posterior.encode(x, draws)
        z = posterior.latent_path(encoded, 1, draws)[-1, 0]
        values = {
            "reconstruction": pixel_mean(self.model, x, z, draws),
            "kl": ops.gaussian_kl(encoded.mean, encoded.log_var),
            "noise": self.prior_fit.noise_loss(x, draws),
        }
        return Terms(values, {"reconstruction": 1.0, "kl": self.kl.at(progress), "noise": 1.0})


class ReleasedDDVI(Objective):
    """Stage 3 (`diff_vae_warmup`): a conditional deterministic chain, then separate sleep updates.

    Terms: `reconstruction` (mean over pixels), `kl` of `q(y_T | x)` to N(0, I), `prior` = -log p_kde(z),
    `matching` (Huber error between the noising process's mean and the chain's, at one random step), and `sleep`.
    """

    def __init__(self, model: LatentVariableModel, posterior: Diffusion, kl: KLSchedule, num_sleep_updates: int = 3) -> None:
        super().__init__()
        self.model, self.posterior, self.kl = model, posterior, kl
        self.num_sleep_updates = num_sleep_updates

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        chain = [*self.posterior.denoiser.parameters(), *self.posterior.context_encoder.parameters()]
        return {**super().parameter_groups(), "sleep": chain}

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self._wake_terms(x, progress, draws))
        # The decoder stands still in the sleep updates, so it makes the fantasies of all of them in one pass.
        count, steps = self.num_sleep_updates, self.posterior.schedule.num_steps
        fantasies = functools.cache(lambda: self.model.simulate(len(x), draws, x, count))
        timesteps = functools.cache(lambda: rng.integers(draws, (count, len(x)), steps, rng.TIME, x.device))
        for update in range(count):
            made = lambda update=update: (x, fantasies().of(update), timesteps()[update], draws.importance(update))  # noqa: E731
            yield Update("sleep", lambda made=made: self._sleep_terms(*made()))

    def _wake_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        encoded = self.posterior.encode(x, draws)
        trajectory = self.posterior.latent_path(encoded, 1, draws)[:, 0]
        z = trajectory[-1]
        t = uniform_timesteps(draws, len(x), self.posterior.schedule.num_steps, x.device)
        values = {
            "reconstruction": pixel_mean(self.model, x, z, draws),
            "kl": ops.gaussian_kl(encoded.mean, encoded.log_var),
            "prior": -self.model.prior.log_prob_kde(z),
            "matching": mean_matching(self.posterior, encoded.context, trajectory, t),
        }
        kl = self.kl.at(progress)
        return Terms(values, {"reconstruction": 1.0, "kl": kl, "prior": kl, "matching": 1.0})

    def _sleep_terms(self, like: Tensor, fantasies: Fantasies, t: Tensor, draws: Draws) -> Terms:
        z, x = fantasies.z, fantasies.x
        with fixed_statistics(self.posterior):  # fantasies are not data
            context = self.posterior.encode_context(x.view_as(like), draws)
        return Terms({"sleep": self.posterior.denoising_loss(context, z, t, draws, "huber")}, {"sleep": 1.0})


class ReleasedELBO(Objective):
    """Loss of the released code for a posterior without a chain (`vae`, `iaf_vae`, `h_iaf_vae`, `iwae`).

    Terms: `reconstruction` (mean over pixels), `entropy` = log q(z | x) and `prior` = -log p_kde(z), nats; with several samples the only
    term is `bound`, their soft minimum.

    Args:
        model: Latent-variable model.
        posterior: Posterior with a density.
        kl: Schedule of the weight of both divergence terms.
        prior_weight: Weight of the prior within them (float, default 1).
        num_samples: Importance samples per row (int, default 1).
        log_var_twice: Whether `log q` contains `log_var` in place of its half, as in the released code.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        posterior: Posterior,
        kl: KLSchedule,
        prior_weight: float = 1.0,
        num_samples: int = 1,
        log_var_twice: bool = False,
    ) -> None:
        super().__init__()
        posterior.require_density()
        self.model, self.posterior, self.kl = model, posterior, kl
        self.prior_weight, self.num_samples, self.log_var_twice = prior_weight, num_samples, log_var_twice

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self._terms(x, progress, draws))

    def _terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        z, log_ratio, _ = self.posterior.sample(x, self.num_samples, draws)
        if self.log_var_twice:
            log_ratio = log_ratio + log_var_excess(first_gaussian(self.posterior, x, draws)[1])
        values = {
            "reconstruction": pixel_mean(self.model, x, z, draws),
            "entropy": -log_ratio,
            "prior": -self.model.prior.log_prob_kde(z.flatten(0, 1)).view_as(log_ratio),
        }
        kl = self.kl.at(progress)
        weights = {"reconstruction": 1.0, "entropy": kl, "prior": self.prior_weight * kl}
        if self.num_samples == 1:
            return Terms({name: value[0] for name, value in values.items()}, weights)
        loss = torch.stack([weights[name] * value for name, value in values.items()]).sum(0)
        return Terms({"bound": -ops.log_mean_exp(-loss, 0)}, {"bound": 1.0})


class PixelMean(Objective):
    """Wrapper of an objective that averages its reconstruction terms over the data's dimensions instead of summing them.

    Args:
        objective: Objective to wrap.
        num_dimensions: Number of the data's dimensions.
    """

    def __init__(self, objective: Objective, num_dimensions: int) -> None:
        super().__init__()
        self.objective, self.num_dimensions = objective, num_dimensions

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.objective.parameter_groups()

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        for update in self.objective.updates(x, progress, draws):
            yield Update(update.group, lambda update=update: self._averaged(update.terms()))

    def _averaged(self, terms: Terms) -> Terms:
        share = {name: weight / self.num_dimensions for name, weight in terms.weights.items() if name.endswith("reconstruction")}
        return Terms(terms.values, {**terms.weights, **share})
