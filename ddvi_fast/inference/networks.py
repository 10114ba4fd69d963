"""The networks of a fitted posterior, built from a description that JSON can hold."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import Diffusion, Gaussian, Posterior, Spline
from ddvi_fast.rng import Draws

FAMILIES = ("diffusion", "flow", "gaussian")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a posterior.

    Args:
        family: ``diffusion``; or to compare with, ``flow`` (autoregressive splines, which need zuko) and ``gaussian`` (mean field).
        num_steps: T of the chain.
        width: of the denoiser, and of the hidden layers of a flow's steps.
        hidden: widths of the hidden layers of the networks that read the data.
        context_dim: what the chain, or the flow, is told of the data.
        activation: of the networks that read the data.
        time_features: of what the denoiser is told about a step, see `denoisers.ResidualMLP`.
        start, end: ratios of noise to signal after the chain's first and its last step, see `schedules.make`.
    """

    family: str = "diffusion"
    num_steps: int = 20
    width: int = 64
    hidden: tuple[int, ...] = (64, 64)
    context_dim: int = 16
    activation: str = "silu"
    time_features: int = 16
    start: float = 0.005
    end: float = 3.0

    def __post_init__(self) -> None:
        _checks.choice(self.family, FAMILIES, "family")
        _checks.require(0 < self.start < self.end, "start, end", "0 < start < end", (self.start, self.end))


class Observation(nn.Module):
    """Data as the networks see them: flattened, with mean 0 and variance 1 in each entry, or embedded by a network of the user's.

    Args:
        shift, scale: [P].
        embedding: from data [N, ...] to [N, P]; then its output is what is standardised.
    """

    def __init__(self, shift: Tensor, scale: Tensor, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return (embed(self.embedding, x) - self.shift) / self.scale

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor, embedding: nn.Module | None) -> Observation:
        """Standardised as data `x` [n, ...] need it."""
        features = embed(embedding, x)
        return cls(features.mean(0), features.std(0).clamp(min=1e-6), embedding)


def embed(embedding: nn.Module | None, x: Tensor) -> Tensor:
    """Features [N, P] of data [N, ...]."""
    return x.flatten(1) if embedding is None else embedding(x)


class Constant(nn.Module):
    """An encoder that looks at no data: learned numbers [outputs], the same for every row."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.output.expand(len(x), -1)


class Reader(nn.Module):
    """A network on standardised data, added to a linear map of them: where parameters follow the data closely, most is linear.

    Args:
        observation: shared by the readers of one posterior.
        outputs: width of the output.
        architecture: of the network.
        draws: where the initial weights are drawn.
    """

    def __init__(self, observation: Observation, outputs: int, architecture: Architecture, draws: Draws) -> None:
        super().__init__()
        self.observation, inputs = observation, len(observation.shift)
        self.network = MLP(inputs, architecture.hidden, outputs, activation=architecture.activation, draws=draws)
        self.linear = MLP(inputs, [], outputs, draws=draws.importance(1))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        features = self.observation(x)
        return self.network(features, draws) + self.linear(features)


def build(architecture: Architecture, dim: int, observation: Observation | None, seed: int) -> Posterior:
    """A posterior of `dim` coordinates that reads data through `observation`, or of one data set where that is None."""
    make = _constant_encoders if observation is None else _readers
    encoder, context = make(architecture, dim, observation, seed)
    if architecture.family == "gaussian":
        return Gaussian(encoder, dim)
    if architecture.family == "flow":
        wide = architecture.context_dim if observation is not None else 1
        context = context or Constant(1)
        return Spline(encoder, context, dim, context_dim=wide, num_steps=3, hidden_dim=architecture.width, draws=Draws(seed).importance(3))
    denoiser = ResidualMLP(
        dim, 0 if context is None else architecture.context_dim, architecture.num_steps, architecture.width,
        zero_output=True, time_features=architecture.time_features, draws=Draws(seed).importance(3),
    )  # fmt: skip
    schedule = schedules.make("geometric", architecture.num_steps, start=architecture.start, end=architecture.end)
    posterior = Diffusion(encoder, denoiser, schedule, context_encoder=context, parametrisation="v", learn_variances=True)
    _start_as_standard_normal(posterior)
    return posterior


@torch.no_grad()
def _start_as_standard_normal(posterior: Diffusion) -> None:
    """An untrained chain then gives N(0, I) exactly: of such data the velocity is 0 everywhere, and a step undoes noise of variance beta."""
    posterior.log_variance_factors.copy_(torch.log(posterior.betas / posterior.coefficients()[:, 2].double().square()))


def whitening_reader(architecture: Architecture, dim: int, observation: Observation, seed: int) -> Reader:
    """From data to mean and log-scale of `dim` coordinates, through an observation of its own: the posterior's is trained on."""
    return Reader(copy.deepcopy(observation), 2 * dim, architecture, Draws(seed).importance(8))


def _constant_encoders(architecture: Architecture, dim: int, observation: None, seed: int) -> tuple[nn.Module, None]:
    return Constant(2 * dim), None


def _readers(architecture: Architecture, dim: int, observation: Observation, seed: int) -> tuple[nn.Module, nn.Module]:
    start, context = (Draws(seed).importance(place) for place in (4, 6))
    return Reader(observation, 2 * dim, architecture, start), Reader(observation, architecture.context_dim, architecture, context)
