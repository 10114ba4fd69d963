"""`fit_posterior`: from a model of one's own to a posterior that can be sampled, weighted and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ddvi_fast import _checks
from ddvi_fast.engine.engine import Engine
from ddvi_fast.inference.model import FlatModel, HasLogJoint, HasSimulate, Simulator, offers, simulate
from ddvi_fast.inference.networks import Architecture, Observation, build, whitening_reader
from ddvi_fast.inference.objective import COVERING, EvidenceBound, GaussianFit, Simulated
from ddvi_fast.inference.posterior import FittedPosterior, observed_rows
from ddvi_fast.inference.start import gaussian_start
from ddvi_fast.inference.support import Support
from ddvi_fast.inference.whitening import ConditionalWhitening, Whitening
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

OBJECTIVES = ("auto", "bound", "simulations", "both")
_LOOKED_AT = 4096  # simulations by which coordinates and data are standardised
_PART = 0.25  # of the steps, for the Gaussian approximation that comes first
_WARMUP = 0.05  # of the steps: at the full rate from the first one on, networks whose layers are wide may lose the data for good
_KEPT = 20  # losses of the history


@dataclass(frozen=True)
class Training:
    """How a posterior is trained.

    Args:
        steps: of Adam.
        batch_size: simulations, or samples of the bound, a step.
        lr: peak learning rate; it rises linearly over the first twentieth of the steps and falls to zero along a cosine.
        max_norm: limit of the gradient's norm.
    """

    steps: int = 8000
    batch_size: int = 512
    lr: float = 5e-3
    max_norm: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            _checks.require(isinstance(getattr(self, name), int) and getattr(self, name) >= 1, name, "an integer of at least 1", getattr(self, name))


def fit_posterior(
    model: HasLogJoint | HasSimulate,
    x: Any = None,
    *,
    support: Support | Constraint | Mapping[str, Any] = constraints.real,
    dim: int | None = None,
    objective: str = "auto",
    architecture: Architecture = Architecture(),
    training: Training = Training(),
    num_simulations: int | None = None,
    embedding: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FittedPosterior:
    """Train a diffusion posterior for a model of one's own.

    A model with `simulate` gets a posterior that takes any data of that shape, trained on simulations: first a Gaussian approximation, by a
    quarter of the steps more, then the chain in its coordinates. Where it has `log_joint` as well, the
    evidence bound at `x` (at simulated data without `x`) is trained along. A model with `log_joint` alone gets the posterior of the one
    data set `x`, trained by the bound, and from half of the steps on by its own samples weighted by importance as well, which widen it where
    the bound leaves it too narrow; modes that no sample has met stay out (`importance_sample` cannot tell).

    Args:
        model: an object with `log_joint(x, z)`, `simulate(n)` or both (see `Model`, `HasLogJoint`, `HasSimulate`).
        x: of a model with `simulate`, observed data [...] shaped as one simulation, or rows of them [M, ...], or None; of a model without it,
            whatever its `log_joint` takes.
        support: where parameters may lie, see `Support`.
        dim: length of the parameter vector, where it has no names; simulations tell it.
        objective: ``bound``, ``simulations`` or ``both``; ``auto`` takes whatever the model offers.
        architecture: family and sizes.
        training: steps, batches and rate.
        num_simulations: train on so many simulations, drawn once, instead of new ones at every step.
        embedding: a network from data [N, ...] to features [N, P], trained along; data are flattened without it.
        seed: of everything.
        device: where to train.

    Raises:
        InputError: a model without what the objective needs, shapes that do not fit, values that are not finite.

    Example:
        >>> from ddvi_fast.inference import Model
        >>> def simulate(n):  # a coin of unknown bias, tossed 10 times
        ...     bias = torch.rand(n, 1)
        ...     return bias, torch.binomial(torch.full((n, 1), 10.0), bias)
        >>> posterior = fit_posterior(
        ...     Model(simulate=simulate), torch.tensor([7.0]), support=constraints.unit_interval, training=Training(steps=20, batch_size=64)
        ... )
        >>> posterior.sample(5).shape, posterior.sample(5, x=torch.tensor([[2.0], [9.0]])).shape
        (torch.Size([5, 1]), torch.Size([5, 2, 1]))
    """
    objective, device = _chosen(objective, model), torch.device(device)
    request = _Request(model, x, architecture, training, seed, device)
    if objective == "bound":
        fitted, goal = request.for_one_data_set(_support(support, dim))
    else:
        simulator = Simulator(model, _support(support, dim, model), num_simulations, seed, device)
        fitted, goal = request.for_any_data(simulator, embedding, with_bound=objective == "both")
    fitted.history = _train(goal, training, seed, device)
    fitted.posterior.eval()
    return fitted


def _chosen(objective: str, model: Any) -> str:
    """The objective, never ``auto``; refuses one whose callables the model lacks."""
    _checks.choice(objective, OBJECTIVES, "objective")
    density, simulations = offers(model, "log_joint"), offers(model, "simulate")
    _checks.require(density or simulations, "model", "an object with log_joint(x, z) or simulate(n)", type(model).__name__)
    if objective == "auto":
        return "both" if density and simulations else "bound" if density else "simulations"
    _checks.require(density or objective == "simulations", "model", f"log_joint(x, z), for objective={objective}", "none")
    _checks.require(simulations or objective == "bound", "model", f"simulate(n), for objective={objective}", "none")
    return objective


def _support(support: Any, dim: int | None, simulated: Any = None) -> Support:
    """The support as given, or of one constraint and a length; that of a model's simulations, if there are any, where `dim` is None."""
    if isinstance(support, Support):
        return support
    if dim is None and simulated is not None and not isinstance(support, Mapping):
        z, _ = simulate(simulated, 2, Draws(0))
        _checks.require(isinstance(z, Tensor) and z.dim() == 2, "support", "a mapping, as simulate gives named parameters", support)
        dim = z.shape[1]
    return Support(support, dim)


@dataclass(frozen=True)
class _Request:
    """What both ways of fitting need."""

    model: Any
    x: Any
    architecture: Architecture
    training: Training
    seed: int
    device: torch.device

    def for_one_data_set(self, support: Support) -> tuple[FittedPosterior, Objective]:
        correlated = self.architecture.family != "gaussian"  # else it would be no mean field
        whitening = gaussian_start(self.model, self.x, support, self.seed, self.device, correlated)
        posterior = build(self.architecture, support.dim, None, self.seed).to(self.device)
        fitted = FittedPosterior(posterior, support, whitening, self.architecture, conditional=False, model=self.model, x=self.x)
        return fitted, EvidenceBound(posterior, FlatModel(self.model, support, whitening), self.x, self.training.batch_size)

    def for_any_data(self, simulator: Simulator, embedding: nn.Module | None, with_bound: bool) -> tuple[FittedPosterior, Objective]:
        support, first = simulator.support, simulator.take(_LOOKED_AT, Draws(self.seed).lane("looked_at"))
        observation = Observation.of(first.x, None if embedding is None else embedding.to(self.device))
        reader = whitening_reader(self.architecture, support.dim, observation, self.seed)
        whitening = self._whitened(ConditionalWhitening(Whitening.of(first.u), reader.to(self.device)), simulator)
        posterior = build(self.architecture, support.dim, observation, self.seed).to(self.device)
        shape = tuple(first.x.shape[1:])
        observed = None if self.x is None else observed_rows(self.x, shape)[0].to(self.device)
        options = {"conditional": True, "model": self.model, "x": self.x, "data_shape": shape}
        fitted = FittedPosterior(posterior, support, whitening, self.architecture, **options)
        model = FlatModel(self.model, support, whitening) if with_bound else None
        return fitted, Simulated(posterior, whitening, simulator, self.training.batch_size, model, observed)

    def _whitened(self, whitening: ConditionalWhitening, simulator: Simulator) -> ConditionalWhitening:
        """Fitted on a part of the steps that the posterior gets, and held fixed from there."""
        training = dataclasses.replace(self.training, steps=max(1, int(_PART * self.training.steps)))
        _train(GaussianFit(whitening, simulator, training.batch_size), training, self.seed, self.device)
        return whitening.requires_grad_(False)


def _train(objective: Objective, training: Training, seed: int, device: torch.device) -> list[float]:
    """All steps; returns means of the loss over each twentieth of them."""
    optimisation = Optimisation(lr=training.lr, warmup_fraction=_WARMUP, max_norm=training.max_norm, factors={})
    engine = Engine(objective, optimisation, device, capture=False, exchange=False)
    rows, losses = torch.zeros(1, 1, device=device), []
    for step in range(training.steps):
        means = engine.run(rows, Progress(step, training.steps), Draws(seed, step * training.batch_size))
        losses.append(torch.stack([mean for name, mean in means.items() if name != COVERING]).sum())
    engine.check()
    parts = torch.stack(losses).tensor_split(min(_KEPT, training.steps))
    return [float(part.mean()) for part in parts]
