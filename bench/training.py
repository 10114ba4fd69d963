"""The whole DDVI training step at MNIST shape: ours, made of public parts, against the baseline with the same work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.baselines.training import KL_WEIGHT, LEARNING_RATE, Networks, Sizes, TrainingStep
from bench.diffusion import copy_denoiser, denoiser_gradients, network_flops
from bench.problem import Work
from bench.steps import Step
from ddvi_fast import likelihoods, models, networks, posteriors, priors, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine.local import LocalEngine
from ddvi_fast.objectives import Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.wake_sleep import uniform_timesteps
from ddvi_fast.paper.objectives import ReleasedDDVI
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

SEED = 3
PROGRESS = Progress(0, 1, 1000)
SMALL = Sizes(pixels=64, hidden=64, chain_hidden=64)  # for trying things out


def build_objective(sizes: Sizes, device: torch.device | str = "cpu") -> ReleasedDDVI:
    """The released recipe's third stage at these sizes."""

    def mlp(number: int, inputs: int, outputs: int, dropout: float) -> networks.MLP:
        draws = Draws(SEED).importance(number)
        return networks.MLP(inputs, [sizes.hidden] * 2, outputs, activation="leaky_relu", dropout=dropout, draws=draws)

    decoder = mlp(0, sizes.latent, sizes.pixels, 0.0)
    model = models.LatentVariableModel(priors.make("pinwheel"), decoder, likelihoods.make("bernoulli"))
    posterior = posteriors.Diffusion(
        mlp(1, sizes.pixels, 2 * sizes.latent, 0.2),
        ResidualMLP(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden, draws=Draws(SEED).importance(3)),
        schedules.make("linear", sizes.num_steps),
        context_encoder=mlp(2, sizes.pixels, sizes.context, 0.4),
        parametrisation="eps",
        eta=0.0,
        learn_variances=False,
    )
    return ReleasedDDVI(model, posterior, KLSchedule("constant", KL_WEIGHT), sizes.sleep_updates).to(device)


class OurStep:
    """One batch through a `LocalEngine`; every call is the next batch of the run.

    Args:
        objective: what is trained.
        device: where.
        bf16: matrix products of networks and chain in bf16.
        capture: record the step and replay it; by default on a GPU.
        compile_networks: let `torch.compile` fuse the dense networks.
    """

    def __init__(
        self, objective: ReleasedDDVI, device: torch.device, bf16: bool = False, capture: bool | None = None, compile_networks: bool = False
    ) -> None:
        objective.train()
        optimisation = Optimisation(LEARNING_RATE, "constant")
        precision = "bf16" if bf16 else "float32"
        self.engine = LocalEngine(objective, optimisation, device, capture=capture, compile_networks=compile_networks, precision=precision)
        self.draws = Draws(SEED)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        terms = self.engine.run(x, PROGRESS, self.draws)
        self.draws = self.draws.advance(len(x))
        return terms


def precision(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager:
    """Autocast to bf16, without its cache of weights: an optimiser's step inside would leave stale ones in it."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if bf16 else contextlib.nullcontext()


def copy_networks(source: ReleasedDDVI, target: Networks) -> Networks:
    """Our weights in the baseline's networks."""
    posterior = source.posterior
    pairs = ((posterior.encoder, target.encoder), (posterior.context_encoder, target.context_encoder), (source.model.decoder, target.decoder))
    for ours, theirs in pairs:
        copy_perceptron(ours, theirs)
    copy_denoiser(posterior.denoiser, target.denoiser)
    return target.to(next(source.parameters()).device)


@torch.no_grad()
def copy_perceptron(source: networks.MLP, target: nn.Sequential) -> None:
    """Our weights in one of the baseline's dense networks."""
    for one, other in zip(source.parameters(), linear_parameters(target), strict=True):
        other.copy_(one)


def linear_parameters(network: nn.Sequential) -> list[nn.Parameter]:
    """Weight and bias of one linear layer after another, the order of ours."""
    return [parameter for layer in network if isinstance(layer, nn.Linear) for parameter in (layer.weight, layer.bias)]


def images(rows: int, pixels: int, device: torch.device) -> Tensor:
    """A batch in [0, 1] that is mostly dark, as digits are."""
    return rng.uniform(Draws(SEED), (rows, pixels), rng.OBSERVATION, device=device) ** 4


class Training(Step):
    """The step as a case; what is checked is a wake and a sleep update."""

    def __init__(self, device: torch.device, N: int, T: int, small: bool = False) -> None:
        super().__init__(device)
        self.sizes = replace(SMALL if small else Sizes(), num_steps=T)
        self.rows, self.x = N, images(N, self.sizes.pixels, device)
        self.work = Work(flops=step_flops(self.sizes, N), exponentials=10.0 * N * self.sizes.kde_points)

    def provider(self, name: str) -> Callable[[], object]:
        objective = self.objective()
        if name.startswith("ours"):
            step = OurStep(objective, self.device, bf16=name.endswith("bf16"))
        else:
            step = self.baseline(objective, compiled=name == "compiled").train()
        if self.device.type == "cuda":
            for _ in range(5):  # a recorded step runs as it is first, and then records
                step(self.x)
        return lambda: step(self.x)

    def objective(self) -> ReleasedDDVI:
        return build_objective(self.sizes, self.device)

    def baseline(self, objective: ReleasedDDVI, compiled: bool = False) -> TrainingStep:
        points = objective.model.prior.sample(self.sizes.kde_points, Draws(0), device=self.device)
        step = TrainingStep(copy_networks(objective, Networks(self.sizes)), self.sizes, points).eval()
        return step.compiled() if compiled else step

    def given(self, objective: ReleasedDDVI) -> dict[str, tuple[Tensor, ...]]:
        """What the updates of our step draw, for the baseline: arguments of its two losses."""
        draws, shape, sleep = Draws(SEED), (self.rows, self.sizes.latent), Draws(SEED).importance(0)
        start = rng.normal(draws, (1, *shape), rng.START, device=self.device)[0]
        t = uniform_timesteps(draws, self.rows, self.sizes.num_steps, self.device)
        z, x = objective.model.simulate(self.rows, sleep, self.x)
        noise = rng.normal(sleep, shape, rng.NOISE, device=self.device)
        return {"wake": (self.x, start, t), "sleep": (z, x, uniform_timesteps(sleep, self.rows, self.sizes.num_steps, self.device), noise)}

    def baseline_results(self, step: TrainingStep, given: dict[str, tuple[Tensor, ...]], bf16: bool = False) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for update, loss in (("wake", step.wake_loss), ("sleep", step.sleep_loss)):
            step.networks.zero_grad()
            with precision(step.points.device, bf16):
                value = loss(*given[update])
            value.backward()
            found[update] = value.detach()
            for name in ("encoder", "context_encoder", "decoder"):
                found |= named_gradients(update, name, linear_parameters(getattr(step.networks, name)))
            gradients = denoiser_gradients(step.networks.denoiser, [parameter.grad for parameter in step.networks.denoiser.parameters()])
            found |= {f"{update} gradient of denoiser {name}": gradient for name, gradient in gradients.items()}
        return {name: value.cpu() for name, value in found.items()}

    def our_results(self, objective: ReleasedDDVI, bf16: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for update in objective.updates(self.x, PROGRESS, Draws(SEED)):
            if update.group in found:
                break
            objective.zero_grad()
            with precision(self.device, bf16):
                value = update.terms().total()
            value.backward()
            found[update.group] = value.detach()
            posterior = objective.posterior
            modules = {"encoder": posterior.encoder, "context_encoder": posterior.context_encoder, "decoder": objective.model.decoder}
            for name, module in modules.items():
                found |= named_gradients(update.group, name, list(module.parameters()))
            for name, parameter in posterior.denoiser.named_parameters():
                found[f"{update.group} gradient of denoiser {name}"] = parameter.grad
        return {name: value.cpu() for name, value in found.items()}


def step_flops(sizes: Sizes, rows: int) -> float:
    """Floating-point operations of the step's matrix products, forward and backward.

    Backward costs twice a forward pass, less the gradient to the data in an encoder's first layer. Fantasies are decoded forward only.
    """

    def dense(inputs: int, outputs: int) -> float:
        first, rest = inputs * sizes.hidden, sizes.hidden * (sizes.hidden + outputs)
        return 2.0 * rows * (2 * first + 3 * rest)

    context = dense(sizes.pixels, sizes.context)
    chain = 3.0 * rows * network_flops(sizes.latent, sizes.context, sizes.chain_hidden)
    decoder_forward = 2.0 * rows * sizes.hidden * (sizes.latent + sizes.hidden + sizes.pixels)
    wake = dense(sizes.pixels, 2 * sizes.latent) + context + 3 * decoder_forward + (sizes.num_steps + 1) * chain
    return wake + sizes.sleep_updates * (context + chain + decoder_forward)


def named_gradients(update: str, network: str, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """By position: weight and bias of one layer after another."""
    return {f"{update} gradient of {network} {i}": parameter.grad for i, parameter in enumerate(parameters) if parameter.grad is not None}
