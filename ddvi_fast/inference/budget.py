"""Fit of a chain to a fixed number of simulations: a validation split, early stopping, averaged weights and an average of several chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import rng
from ddvi_fast.engine.engine import Engine
from ddvi_fast.inference.ensemble import average, fit_variances, joined
from ddvi_fast.inference.networks import Architecture, build
from ddvi_fast.inference.objective import even_timesteps
from ddvi_fast.inference.observation import Observation
from ddvi_fast.inference.ridge import Ridge, ridge
from ddvi_fast.networks import evaluation
from ddvi_fast.objectives import Objective, Progress, Terms
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

_HELD_OUT, _FEWEST, _MOST = 10, 100, 5000  # one of so many simulations is for validation, at least and at most so many (a quarter of few)
_TRIED = 4096  # least number of noised simulations in a validation
_CHECKS = 40  # validations in all steps
_PATIENCE = 0.3  # share of the steps without a lower validation loss after which a fit stops
_MEMORY = 0.998  # decay of the average of the weights in a step, once it is long enough


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


class Averaged:
    """Exponential average of the weights of modules over the steps of their training, and the best one so far by a validation loss.

    Args:
        parameters: The weights, which are trained in place.
        loss: Function that computes the validation loss at the present weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss: Callable[[], float]) -> None:
        self.parameters, self.loss = parameters, loss
        self.mean = [parameter.detach().clone() for parameter in parameters]
        self.best, self.lowest, self.step, self.found_at = [value.clone() for value in self.mean], loss(), 0, 0

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights of one more step into the average, which is over all of the first steps."""
        self.step += 1
        share = max(1 - _MEMORY, 9 / (10 + self.step))
        torch._foreach_lerp_(self.mean, [parameter.detach() for parameter in self.parameters], share)

    @torch.no_grad()
    def check(self) -> None:
        """Compute the validation loss of the average, and keep it if it is the lowest."""
        present = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self.mean)
        if (loss := self.loss()) < self.lowest:
            self.lowest, self.found_at, self.best = loss, self.step, [value.clone() for value in self.mean]
        self._put(present)

    def finish(self) -> None:
        """Put the best weights into the modules."""
        self._put(self.best)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class Fit:
    """Settings of a fit to stored simulations: the number of steps, simulations per step, rate, limit of the gradient's norm, and seed."""

    steps: int
    batch_size: int
    lr: float
    max_norm: float
    warmup: float
    seed: int

    def train(self, objective: ChainFit, device: torch.device) -> Tensor:
        """Train until the validation loss has not fallen for long, or for all steps; returns the loss of each step."""
        optimisation = Optimisation(lr=self.lr, warmup_fraction=self.warmup, max_norm=self.max_norm, factors={})
        engine = Engine(objective, optimisation, device, capture=False, exchange=False)
        parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        averaged = Averaged(parameters, lambda: objective.validation_loss(Draws(self.seed).lane("held_out")))
        row, losses, every = torch.zeros(1, 1, dtype=torch.float32, device=device), [], max(1, self.steps // _CHECKS)
        for step in range(self.steps):
            losses.append(engine.run(row, Progress(step, self.steps), Draws(self.seed, step * self.batch_size))["chain"])
            averaged.follow()
            if (step + 1) % every == 0 or step + 1 == self.steps:
                averaged.check()
                if averaged.step - averaged.found_at > _PATIENCE * self.steps:
                    break
        engine.check()
        averaged.finish()
        return torch.stack(losses)


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
    architecture: Architecture, dim: int, observation: Observation, y: Tensor, x: Tensor, fit: Fit, device: torch.device
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
    losses = [dataclasses.replace(fit, seed=seed).train(goal_of(member), device) for member, seed in zip(members, seeds, strict=True)]
    whole = joined(architecture, count)
    posterior = members[0] if count == 1 else average(members, build(whole, dim, observation, fit.seed).to(device))
    fit_variances(posterior, goal_of(posterior).step_errors(Draws(fit.seed).lane("held_out")))
    return posterior, whole, losses[0]


def _seeds(seed: int, count: int) -> list[int]:
    """Seeds of the members, the first of which is that of the fit."""
    return [seed, *(rng.words(Draws(seed).lane("held_out"), (count, 1), rng.OBSERVATION)[1:, 0].tolist())]
