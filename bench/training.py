"""The DDVI training step of the released code at MNIST shape as a problem: ours against the baseline with the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bench.baselines.training import KL_WEIGHT, Networks, Sizes, TrainingStep
from bench.problem import Work
from bench.steps import SEED, Step, images, perceptron
from bench.weights import network_flops
from ddvi_fast import likelihoods, models, posteriors, priors, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.objectives import Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.pairs import uniform_timesteps
from ddvi_fast.paper.objectives import ReleasedDDVI
from ddvi_fast.rng import Draws

PROGRESS = Progress(0, 1, 1000)
SMALL = Sizes(pixels=64, hidden=64, chain_hidden=64)  # for tests


def build_objective(sizes: Sizes, device: torch.device | str = "cpu") -> ReleasedDDVI:
    """The third stage of the released recipe at these sizes."""
    decoder = perceptron(0, sizes.latent, sizes.hidden, sizes.pixels)
    model = models.LatentVariableModel(priors.make("pinwheel"), decoder, likelihoods.make("bernoulli"))
    posterior = posteriors.Diffusion(
        perceptron(1, sizes.pixels, sizes.hidden, 2 * sizes.latent, 0.2),
        ResidualMLP(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden, draws=Draws(SEED).importance(3)),
        schedules.make("linear", sizes.num_steps),
        context_encoder=perceptron(2, sizes.pixels, sizes.hidden, sizes.context, 0.4),
        parametrisation="eps",
        eta=0.0,
        learn_variances=False,
    )
    return ReleasedDDVI(model, posterior, KLSchedule("constant", KL_WEIGHT), sizes.sleep_updates).to(device)


class Training(Step):
    """The step as a case; a wake and a sleep update are checked."""

    progress = PROGRESS

    def __init__(self, device: torch.device, N: int, T: int, small: bool = False) -> None:
        super().__init__(device)
        self.sizes = replace(SMALL if small else Sizes(), num_steps=T)
        self.rows, self.x = N, images(N, self.sizes.pixels, device)
        self.work = Work(flops=step_flops(self.sizes, N), exponentials=10.0 * N * self.sizes.kde_points)

    def objective(self):
        return build_objective(self.sizes, self.device)

    def perceptrons(self, objective):
        posterior = objective.posterior
        return {"encoder": posterior.encoder, "context_encoder": posterior.context_encoder, "decoder": objective.model.decoder}

    def denoiser(self, objective):
        return objective.posterior.denoiser

    def plain(self, objective):
        points = objective.model.prior.sample(self.sizes.kde_points, Draws(0), device=self.device)
        return TrainingStep(Networks(self.sizes).to(self.device), self.sizes, points)

    def given(self, objective):
        draws, shape, sleep = Draws(SEED), (self.rows, self.sizes.latent), Draws(SEED).importance(0)
        start = rng.normal(draws, (1, *shape), rng.START, device=self.device)[0]
        t = uniform_timesteps(draws, self.rows, self.sizes.num_steps, self.device)
        z, x = objective.model.simulate(self.rows, sleep, self.x)[:2]
        noise = rng.normal(sleep, shape, rng.NOISE, device=self.device)
        return {"wake": (self.x, start, t), "sleep": (z, x, uniform_timesteps(sleep, self.rows, self.sizes.num_steps, self.device), noise)}

    def plain_losses(self, step, given):
        return [("wake", lambda: step.wake_loss(*given["wake"])), ("sleep", lambda: step.sleep_loss(*given["sleep"]))]

    def our_losses(self, objective) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        seen: set[str] = set()
        for update in objective.updates(self.x, PROGRESS, Draws(SEED)):
            if update.group in seen:
                return
            seen.add(update.group)
            yield update.group, lambda update=update: update.terms().total()


def step_flops(sizes: Sizes, rows: int) -> float:
    """Floating-point operations of the step's matrix products, forward and backward.

    A backward pass takes twice as many as a forward pass, without the gradient to the data in an encoder's first layer. Fantasies are only decoded
    forward.
    """

    def dense(inputs: int, outputs: int) -> float:
        first, rest = inputs * sizes.hidden, sizes.hidden * (sizes.hidden + outputs)
        return 2.0 * rows * (2 * first + 3 * rest)

    context = dense(sizes.pixels, sizes.context)
    chain = 3.0 * rows * network_flops(sizes.latent, sizes.context, sizes.chain_hidden)
    decoder_forward = 2.0 * rows * sizes.hidden * (sizes.latent + sizes.hidden + sizes.pixels)
    wake = dense(sizes.pixels, 2 * sizes.latent) + context + 3 * decoder_forward + (sizes.num_steps + 1) * chain
    return wake + sizes.sleep_updates * (context + chain + decoder_forward)
