"""Networks of a fitted posterior, built from an `Architecture`."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.inference.observation import Observation
from ddvi_fast.networks import ACTIVATIONS, MLP, usual_defaults
from ddvi_fast.posteriors import Diffusion, Gaussian, Posterior, Spline
from ddvi_fast.rng import Draws

FAMILIES = ("diffusion", "flow", "gaussian")
_FEW_STEPS, _MANY_STEPS = 8, 20  # default lengths of chains with and without informed steps
_STORED_STEPS, _STORED_END = 100, 8.0  # default length and last ratio of noise to signal for a fixed number of simulations
_END = 3.0  # default last ratio of noise to signal otherwise
_WIDTH, _WIDE = 64, 128  # default widths for few and for many stored simulations
_MEMBERS = 4  # default number of chains for few stored simulations; there is one for many
_MANY = 30_000  # number of stored simulations from which they are many
_FOR_ROWS, _FOR_SIMULATIONS = (400,), (64, 64)  # default widths of encoders
_INFORMED_BETA = 0.25  # initial beta of every step of a chain with informed steps
_FRAME_UPDATES, _FEW_PARAMETERS = 2, 32  # default updates of the frame, and the largest number of parameters that has them


@dataclass(frozen=True)
class Architecture:
    """Posterior family and sizes of its networks.

    Args:
        family: ``diffusion`` (default), ``flow`` (autoregressive splines, which need zuko) or ``gaussian`` (mean field).
        num_steps: Number of steps of the chain, T (int). Default: 8 with `informed_steps`, 100 for a fixed number of simulations, otherwise 20.
        width: Width of the hidden layers of the denoiser, or of a flow's steps (int). Default: 64, or 128 from 30,000 stored simulations on.
        hidden: Widths of the hidden layers of the encoders: of the frame, and of the context. Default: (400,) for a fit to rows of data,
            otherwise (64, 64).
        context_dim: Size of the context vector of the chain or flow (int, default 16).
        activation: Activation of the encoders (default ``silu``).
        time_features: Number of the denoiser's time features, see `denoisers.ResidualMLP` (int, default 16).
        start: Ratio of noise to signal after the first step of the noising process, see `schedules.make` (float, default 0.005).
        end: Ratio of noise to signal after its last step (float). Default: 8 for a fixed number of simulations, otherwise 3.
        informed_steps: Number of steps, the last ones, that see the gradient of the model's `log_joint` (int, from 0 to `num_steps`), see
            `posteriors.Diffusion`. Default: all of them for a fit to rows of data, otherwise 0.
        frame_updates: Number of updates of the frame with the gradient of `log_joint` (int), each at 2 D points for each row of data, see
            `posteriors.Diffusion`. Default: 2 for a fit of informed steps to rows of data with at most 32 parameters, otherwise 0.
        ensemble: Number of chains that are trained one after the other on a fixed number of simulations, and whose predictions are averaged (int).
            The posterior is then one chain of so many times the widths. Default: 4 for up to 30,000 stored simulations, otherwise 1.

    Raises:
        InputError: If the family or the activation is unknown, if a size is no positive integer, if there are more informed steps than steps or
            the family has none, or unless 0 < start < end.
    """

    family: str = "diffusion"
    num_steps: int | None = None
    width: int | None = None
    hidden: tuple[int, ...] | None = None
    context_dim: int = 16
    activation: str = "silu"
    time_features: int = 16
    start: float = 0.005
    end: float | None = None
    informed_steps: int | None = None
    frame_updates: int | None = None
    ensemble: int | None = None

    def __post_init__(self) -> None:
        _checks.choice(self.family, FAMILIES, "family")
        _checks.choice(self.activation, ACTIVATIONS, "activation")
        least = {"num_steps": 1, "width": 1, "context_dim": 1, "time_features": 1, "informed_steps": 0, "frame_updates": 0, "ensemble": 1}
        for name, smallest in least.items():
            if getattr(self, name) is not None or type(self).__dataclass_fields__[name].default is not None:
                object.__setattr__(self, name, _checks.integer(getattr(self, name), name, smallest))
        if self.hidden is not None:
            object.__setattr__(self, "hidden", _checks.integers(self.hidden, "hidden", 1))
        object.__setattr__(self, "start", _checks.number(self.start, "start"))
        if self.end is not None:
            object.__setattr__(self, "end", _checks.number(self.end, "end"))
        end = _END if self.end is None else self.end
        _checks.require(0 < self.start < end, "start, end", "0 < start < end", (self.start, end))
        informed = self.informed_steps or 0
        for name, number in self.looks().items():
            _checks.require(number == 0 or self.family == "diffusion", name, f"0 with family={self.family}", number)
        most = informed if self.num_steps is None else self.num_steps
        _checks.require(informed <= most, "informed_steps", f"from 0 to num_steps, {most}", informed)

    def looks(self) -> dict[str, int]:
        """Return by name how often a sample looks at the gradient of the model, in informed steps and in frame updates."""
        return {"informed_steps": self.informed_steps or 0, "frame_updates": self.frame_updates or 0}

    def settled(self, for_rows: bool = False, dim: int = 1, stored: int | None = None) -> Architecture:
        """Return the architecture with the defaults of a fit in place of None.

        Args:
            for_rows: Whether the fit is to rows of data.
            dim: Number of parameters.
            stored: Number of simulations of a fit to a fixed number of them, with a chain. Default: another kind of fit.
        """
        if stored is not None:
            width, members = (_WIDTH, _MEMBERS) if stored < _MANY else (_WIDE, 1)
            own = {"num_steps": _STORED_STEPS, "width": width, "end": _STORED_END, "ensemble": members}
            return dataclasses.replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None}).settled()
        informed = self.informed_steps
        if informed is None:
            informed = (self.num_steps or _FEW_STEPS) if for_rows and self.family == "diffusion" else 0
        steps = self.num_steps or (max(_FEW_STEPS, informed) if informed else _MANY_STEPS)
        hidden = (_FOR_ROWS if for_rows else _FOR_SIMULATIONS) if self.hidden is None else self.hidden
        updates = self.frame_updates
        if updates is None:
            updates = _FRAME_UPDATES if for_rows and informed and dim <= _FEW_PARAMETERS else 0
        plain = {"width": self.width or _WIDTH, "end": _END if self.end is None else self.end, "ensemble": self.ensemble or 1}
        return dataclasses.replace(self, num_steps=steps, hidden=hidden, informed_steps=informed, frame_updates=updates, **plain)


# Setting, the families that have it, and whether only a posterior that reads data does.
_EFFECTS = (
    *((name, ("diffusion",), False) for name in ("num_steps", "time_features", "start", "end")),
    ("ensemble", ("diffusion",), True),
    ("width", ("diffusion", "flow"), False),
    ("context_dim", ("diffusion", "flow"), True),
    *((name, FAMILIES, True) for name in ("hidden", "activation")),
)


def require_effect(architecture: Architecture, for_any_data: bool) -> None:
    """Refuse settings other than the defaults that would change nothing in a posterior for any data, or in one of a single data set."""
    for name, families, reads_data in _EFFECTS:
        default, value = Architecture.__dataclass_fields__[name].default, getattr(architecture, name)
        has = architecture.family in families and (for_any_data or not reads_data)
        whose = f"family={architecture.family}" if architecture.family not in families else "a posterior of one data set"
        _checks.require(has or value == default, f"architecture.{name}", f"{default}, the default, for {whose}", value, "it would have no effect")


class Constant(nn.Module):
    """Encoder without inputs: a learned vector, the same for every row.

    Args:
        outputs: Length of the vector (int).
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.zeros(outputs, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.output.expand(len(x), -1)


class Reader(nn.Module):
    """Encoder of standardized data: a multilayer perceptron plus a linear map, since informative data determine parameters almost linearly.

    Args:
        observation: Standardization of the data.
        outputs: Number of outputs (int).
        architecture: Sizes of the perceptron.
        draws: Position of the initial weights in the random stream.
    """

    def __init__(self, observation: Observation, outputs: int, architecture: Architecture, draws: Draws) -> None:
        super().__init__()
        self.observation, inputs = observation, observation.width
        self.network = MLP(inputs, architecture.hidden, outputs, activation=architecture.activation, draws=draws)
        self.linear = MLP(inputs, [], outputs, draws=draws.importance(1))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.read(self.observation(x), draws)

    def read(self, features: Tensor, draws: Draws | None = None) -> Tensor:
        """Return the output [N, outputs] for standardized features [N, K]."""
        return self.network(features, draws) + self.linear(features)


def build(architecture: Architecture, dim: int, observation: Observation | None, seed: int) -> Posterior:
    """Build a posterior.

    The posterior is in the encoder's frame, and an untrained chain is the frame's Gaussian (docs/method.md, section 7).

    Args:
        architecture: Posterior family and sizes.
        dim: Number of latent dimensions, D (int).
        observation: Standardization of the data, or None for the posterior of one data set.
        seed: Seed of the initial weights (int).
    """
    with usual_defaults():
        return _build(architecture.settled(), dim, observation, seed)


def _build(architecture: Architecture, dim: int, observation: Observation | None, seed: int) -> Posterior:
    make = _constant_encoders if observation is None else _readers
    encoder, context = make(architecture, dim, observation, seed)
    if architecture.family == "gaussian":
        return Gaussian(encoder, dim, coordinates="encoder")
    if architecture.family == "flow":
        wide = architecture.context_dim if observation is not None else 1
        context = context or Constant(1)
        options = {"context_dim": wide, "num_steps": 3, "hidden_dim": architecture.width, "draws": Draws(seed).importance(3)}
        return Spline(encoder, context, dim, **options, coordinates="encoder")
    wide = (0 if context is None else architecture.context_dim) + (dim if architecture.informed_steps else 0)
    denoiser = ResidualMLP(
        dim, wide, architecture.num_steps, architecture.width,
        zero_output=True, time_features=architecture.time_features, draws=Draws(seed).importance(3),
    )  # fmt: skip
    if architecture.informed_steps:
        schedule = schedules.make("constant", architecture.num_steps, beta=_INFORMED_BETA)
        options = {"context_encoder": context, "coordinates": "encoder", **architecture.looks()}
        return Diffusion(encoder, denoiser, schedule, **options)
    schedule = schedules.make("geometric", architecture.num_steps, start=architecture.start, end=architecture.end)
    posterior = Diffusion(
        encoder, denoiser, schedule, context_encoder=context, parametrisation="v", learn_schedule=False, coordinates="encoder",
        frame_updates=architecture.frame_updates or 0,
    )  # fmt: skip
    _start_as_stationary(posterior)
    return posterior


@torch.no_grad()
def _start_as_stationary(posterior: Diffusion) -> None:
    """Set the step variances to the betas: with zero velocity the chain then reverses a stationary process, and samples N(0, I) exactly."""
    posterior.log_variance_factors.copy_(torch.log(posterior.betas / posterior.coefficients()[:, 2].double().square()))


def _constant_encoders(architecture: Architecture, dim: int, observation: None, seed: int) -> tuple[nn.Module, None]:
    return Constant(2 * dim), None


def _readers(architecture: Architecture, dim: int, observation: Observation, seed: int) -> tuple[nn.Module, nn.Module]:
    start, context = (Draws(seed).importance(place) for place in (4, 6))
    # The frame of a chain is frozen while the chain is trained, and an embedding with it.
    own = _copied(observation) if architecture.family == "diffusion" else observation
    return Reader(own, 2 * dim, architecture, start), Reader(observation, architecture.context_dim, architecture, context)


def _copied(module: nn.Module) -> nn.Module:
    """A copy whose parameters can be trained, also of scripted modules, which torch copies with a graph."""
    with torch.no_grad():
        made = copy.deepcopy(module)
    for mine, theirs in zip(made.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return made
