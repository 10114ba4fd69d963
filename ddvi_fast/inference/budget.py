"""Fit of a chain to a fixed number of simulations: a validation split, early stopping, averaged weights and an average of several chains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.inference.ensemble import average, fit_variances, joined
from ddvi_fast.inference.loop import Fit
from ddvi_fast.inference.networks import Architecture, build
from ddvi_fast.inference.objective import even_timesteps
from ddvi_fast.inference.observation import Observation
from ddvi_fast.inference.recorder import Recorder
from ddvi_fast.inference.ridge import Ridge, ridge
from ddvi_fast.networks import evaluation
from ddvi_fast.objectives import Objective, Progress, Terms
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.rng import Draws

_HELD_OUT, _FEWEST, _MOST = 10, 100, 5000  # one of so many simulations is for validation, at least and at most so many (a quarter of few)
_TRIED = 4096  # least number of noised simulations in a validation


@dataclass(frozen=True)
class Split:
    """Latents in the frame of the chain `v` [n, D] and data `x` [n, ...] of simulations, those of the training and those held out."""

    v: Tensor
    x: Tensor
    held_v: Tensor
    held_x: Tensor

    @classmethod
    def of(cls, v: Tensor, x: Tensor, seed: int) -> Split:
        """Hold out a random part."""
        count = held_out(len(v))
        order = rng.uniform(Draws(seed).lane("held_out"), (len(v), 1), rng.ORDER)[:, 0].argsort().to(v.device)
        held, kept = order[:count], order[count:]
        return cls(v[kept], x[kept], v[held], x[held])


def held_out(count: int) -> int:
    """Number of simulations of `count` that are for validation: a tenth, but 100 of fewer than 1,000, at most a quarter."""
    return max(1, min(max(count // _HELD_OUT, _FEWEST), _MOST, count // 4))


class ChainFit(Objective):
    """The chain's part of `objective.Simulated` over stored simulations, in a frozen frame.

    Terms, nats: `chain`, the divergence of a step times their number, less the entropy of the noising process.

    Args:
        posterior: Chain in the encoder's frame.
        split: Simulations in this frame, with data as `contexts` takes them.
        contexts: Function from data to the context of the chain.
        batch_size: Simulations per step (int).
    """

    def __init__(self, posterior: Diffusion, split: Split, contexts: Callable[[Tensor], Tensor], batch_size: int) -> None:
        super().__init__()
        self.posterior, self.split, self.contexts, self.batch_size = posterior, split, contexts, batch_size

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        rows = rng.integers(draws, self.batch_size, len(self.split.v), rng.ORDER).to(self.split.v.device)
        return Terms({"chain": self._divergence(self.split.v[rows], self.split.x[rows], draws)}, {"chain": 1.0})

    def _divergence(self, v: Tensor, x: Tensor, draws: Draws) -> Tensor:
        t = even_timesteps(draws, len(v), self.posterior.schedule.num_steps, v.device)
        return self.posterior.step_divergence(self.contexts(x), v, t, draws)

    @torch.no_grad()
    def validation_loss(self, draws: Draws) -> float:
        """The mean loss of the simulations held out, each with several noises of steps all along the chain."""
        v, x = self._repeated()
        with evaluation(self.posterior):
            return float(self._divergence(v, x, draws).double().mean())

    def _repeated(self) -> tuple[Tensor, Tensor]:
        split = self.split
        times = -(-_TRIED // len(split.held_v))
        return split.held_v.repeat(times, 1), split.held_x.repeat(times, *(1,) * (split.held_x.dim() - 1))

    @torch.no_grad()
    def step_errors(self, draws: Draws) -> Tensor:
        """Mean squared errors of the means of all steps over the simulations held out, per dimension, float64 [T]."""
        posterior = self.posterior
        v, x = self._repeated()
        v, x, schedule = v[:_TRIED], x[:_TRIED], posterior.schedule
        unit = torch.ones(schedule.num_steps, dtype=torch.float64, device=v.device)
        table, _ = schedule.divergence_table(posterior.parametrisation, posterior.eta, unit)
        with evaluation(posterior):
            context, found = self.contexts(x), []
            for step in range(schedule.num_steps):
                t = torch.full((len(v),), step, dtype=torch.int64, device=v.device)
                found.append(posterior.regression(context, v, t, table, draws.importance(step), "squared").double().mean())
        return torch.stack(found) * 2 / (schedule.num_steps * posterior.latent_dim)


@torch.no_grad()
def set_frame(posterior: Diffusion, start: Ridge) -> None:
    """Make the encoder of a posterior a ridge regression, with one variance for all data, and freeze it.

    A network for the frame would learn the noise of few simulations before the chain sees them: its variances become too small.
    """
    encoder = posterior.encoder
    for layer in (encoder.network.output_layer, encoder.linear.output_layer):
        layer.weight.zero_(), layer.bias.zero_()
    encoder.linear.output_layer.weight[: posterior.latent_dim] = start.matrix
    encoder.linear.output_layer.bias.copy_(torch.cat((start.bias, start.log_error)))
    encoder.requires_grad_(False).eval()


def fit_chain(
    architecture: Architecture, dim: int, observation: Observation, y: Tensor, x: Tensor, fit: Fit, device: torch.device, recorder: Recorder
) -> tuple[Diffusion, Architecture, Tensor]:
    """Fit a chain to stored simulations.

    Args:
        architecture: Settled architecture.
        dim: Number of parameters.
        observation: Standardization of the data, without an embedding.
        y: Parameters in the coordinates of the posterior [n, D].
        x: Data [n, ...].
        fit: Settings of the training.
        device: Device of the training.
        recorder: Checkpoints and progress.

    Returns:
        The chain, its architecture with all of its members side by side, and the losses of the steps of the first.
    """
    count, seeds = architecture.ensemble, _seeds(fit.seed, architecture.ensemble)
    split = Split.of(y, observation(x), fit.seed)
    start = ridge(split.x, split.v)
    split = dataclasses.replace(split, v=start.whitened(split.v, split.x), held_v=start.whitened(split.held_v, split.held_x))

    def goal_of(posterior: Diffusion) -> ChainFit:
        set_frame(posterior.to(device), start)
        return ChainFit(posterior, split, posterior.context_encoder.read, fit.batch_size)

    members = [build(architecture, dim, observation, seed) for seed in seeds]
    losses = []
    for place, (member, seed) in enumerate(zip(members, seeds, strict=True), 1):
        goal = goal_of(member)
        held = functools.partial(goal.validation_loss, Draws(seed).lane("held_out"))
        name = "posterior" if count == 1 else f"member {place} of {count}"
        losses.append(dataclasses.replace(fit, seed=seed).train(goal, device, recorder, name, held))
    whole = joined(architecture, count)
    posterior = members[0] if count == 1 else average(members, build(whole, dim, observation, fit.seed).to(device))
    fit_variances(posterior, goal_of(posterior).step_errors(Draws(fit.seed).lane("held_out")))
    return posterior, whole, losses[0]


def _seeds(seed: int, count: int) -> list[int]:
    """Seeds of the members, the first of which is that of the fit."""
    return [seed, *(rng.words(Draws(seed).lane("held_out"), (count, 1), rng.OBSERVATION)[1:, 0].tolist())]
