"""Normalising flows: a diagonal Gaussian carried through invertible steps that see a context of `x`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ddvi_fast import _checks, ops
from ddvi_fast.networks import linear, uniform_
from ddvi_fast.posteriors.base import Encoded, Posterior, PosteriorSample, draw_start, split_top
from ddvi_fast.rng import Draws

_FIRST_GAIN = 0.1  # on the last layers of coupling networks: the flow starts near the identity, where the encoder's Gaussian is
_BISECTIONS = 40


class Flow(Posterior):
    """`z = f_S(... f_1(z_0; c(x)) ...; c(x))`, `z_0 ~ N(mean(x), diag exp(log_var(x)))`.

    Args:
        encoder: `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean and log-variance of the Gaussian.
        context_encoder: `context_encoder(x, draws)`, from x to [N, C]; None where the encoder's output has the context behind, [N, 2 D + C].
        latent_dim: D.
        steps: modules with `forward(z, context) -> (y, log |det dy/dz|)` and `inverse(y, context) -> (z, log |det dy/dz|)`,
            from [.., N, D] to [.., N, D] and [.., N].
    """

    def __init__(self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, steps: list[nn.Module]) -> None:
        super().__init__()
        _checks.require(len(steps) >= 1, "num_steps", "at least 1", len(steps))
        self.encoder, self.context_encoder, self.latent_dim = encoder, context_encoder, latent_dim
        self.steps = nn.ModuleList(steps)

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        return encode_with_context(self, x, draws)

    def sample_encoded(self, encoded: Encoded, num_samples: int, draws: Draws) -> PosteriorSample:
        """As in `Posterior`; the log-determinants come with the forward pass, so that nothing is inverted."""
        start = draw_start(encoded.mean, encoded.log_var, num_samples, draws)
        z, log_det = push(self.steps, start, encoded.context)
        return PosteriorSample(z, log_det - ops.gaussian_log_prob(start, encoded.mean, encoded.log_var))

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        return push(self.steps, draw_start(encoded.mean, encoded.log_var, num_samples, draws), encoded.context)[0].unsqueeze(0)

    def log_ratio(self, encoded: Encoded, path: Tensor) -> Tensor:
        start, log_det = pull(self.steps, path[-1], encoded.context)
        return log_det - ops.gaussian_log_prob(start, encoded.mean, encoded.log_var)


def encode_with_context(posterior: Any, x: Tensor, draws: Draws | None) -> Encoded:
    """Mean, log-variance and context by the two encoders of `posterior`, whose dropout must not share its draws, or by the one."""
    draws = draws if posterior.training else None
    if posterior.context_encoder is None:
        top, context = posterior.encoder(x, draws).tensor_split((2 * posterior.latent_dim,), dim=-1)
        return Encoded(*split_top(top), context)
    context = posterior.context_encoder(x, None if draws is None else draws.lane("context"))
    return Encoded(*split_top(posterior.encoder(x, draws)), context)


def push(steps: nn.ModuleList, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """`(y, log |det dy/dz|)` of all steps."""
    total = torch.zeros_like(z[..., 0])
    for step in steps:
        z, log_det = step(z, context)
        total = total + log_det
    return z, total


def pull(steps: nn.ModuleList, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """`(z, log |det dy/dz|)` of all steps, the last first."""
    total = torch.zeros_like(y[..., 0])
    for step in reversed(steps):
        y, log_det = step.inverse(y, context)
        total = total + log_det
    return y, total


class PlanarStep(nn.Module):
    """`y = z + u tanh(w . z + b)`, where `u`, `w` and `b` are linear in the context (Rezende and Mohamed 2015).

    `u` is moved along `w` until `w . u > -1`, where the step is invertible.
    """

    def __init__(self, latent_dim: int, context_dim: int, draws: Draws = Draws(0)) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.layer = linear(context_dim, 2 * latent_dim + 1, draws, 0)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        shift, normal, offset, slope = self._directions(context)
        bend = torch.tanh((z * normal).sum(-1, keepdim=True) + offset)
        return z + shift * bend, _planar_log_det(slope, bend)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As `AutoregressiveStep.inverse`: `a = w . z` is the one root of `a + (w . u) tanh(a + b) = w . y`."""
        shift, normal, offset, slope = self._directions(context)
        goal = (y * normal).sum(-1, keepdim=True)
        along = _planar_root(goal.detach(), slope.detach(), offset.detach())
        bend = torch.tanh(along + offset)
        # One Newton step at the root changes nothing but carries the gradient.
        along = along - (along + slope * bend - goal) / (1 + slope * (1 - bend.square()))
        bend = torch.tanh(along + offset)
        return y - shift * bend, _planar_log_det(slope, bend)

    def _directions(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`u` and `w` [N, D], `b` and `w . u` [N, 1]."""
        raw, normal, offset = self.layer(context).split((self.latent_dim, self.latent_dim, 1), dim=-1)
        product = (raw * normal).sum(-1, keepdim=True)
        slope = softplus(product) - 1
        return raw + (slope - product) * normal / normal.square().sum(-1, keepdim=True).clamp(min=1e-12), normal, offset, slope


def _planar_log_det(slope: Tensor, bend: Tensor) -> Tensor:
    return torch.log1p(slope * (1 - bend.square())).squeeze(-1)


@torch.no_grad()
def _planar_root(goal: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    low, high = goal - slope.abs(), goal + slope.abs()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = middle + slope * torch.tanh(middle + offset) < goal
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


class Planar(Flow):
    """A diagonal Gaussian carried through planar steps (Rezende and Mohamed 2015), each bending space along one direction.

    Args:
        encoder, context_encoder, latent_dim: as in `Flow`.
        context_dim: C.
        num_steps: planar steps.
        draws: where the initial weights are drawn.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = Planar(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        context_encoder: nn.Module | None,
        latent_dim: int,
        context_dim: int = 10,
        num_steps: int = 8,
        draws: Draws = Draws(0),
    ) -> None:
        steps = [PlanarStep(latent_dim, context_dim, draws.importance(step)) for step in range(num_steps)]
        super().__init__(encoder, context_encoder, latent_dim, steps)


class RealNVP(Flow):
    """A diagonal Gaussian carried through affine coupling steps (Dinh et al. 2017), with the transforms of zuko.

    Args:
        encoder, context_encoder, latent_dim: as in `Flow`.
        context_dim: C.
        num_steps: coupling steps; every dimension moves in every second one.
        hidden_dim: width of the two hidden layers of each step.
        draws: where the initial weights are drawn.

    Raises:
        InputError: zuko is not installed.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = RealNVP(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    recordable = False  # zuko looks up which dimensions move, every time

    def __init__(
        self,
        encoder: nn.Module,
        context_encoder: nn.Module | None,
        latent_dim: int,
        context_dim: int = 10,
        num_steps: int = 4,
        hidden_dim: int = 64,
        draws: Draws = Draws(0),
    ) -> None:
        options = {"transforms": num_steps, "hidden_features": (hidden_dim, hidden_dim)}
        super().__init__(encoder, context_encoder, latent_dim, _zuko_steps("RealNVP", latent_dim, context_dim, draws, options))


class Spline(Flow):
    """A diagonal Gaussian carried through rational-quadratic splines (Durkan et al. 2019), with the transforms of zuko.

    The splines are autoregressive in the direction of sampling, as in an inverse autoregressive flow, and the identity outside [-5, 5].

    Args:
        encoder, context_encoder, latent_dim: as in `Flow`.
        context_dim: C.
        num_steps: autoregressive steps.
        hidden_dim: width of the two hidden layers of each step.
        num_bins: pieces of each spline.
        draws: where the initial weights are drawn.

    Raises:
        InputError: zuko is not installed.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = Spline(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        context_encoder: nn.Module | None,
        latent_dim: int,
        context_dim: int = 10,
        num_steps: int = 2,
        hidden_dim: int = 64,
        num_bins: int = 8,
        draws: Draws = Draws(0),
    ) -> None:
        options = {"transforms": num_steps, "hidden_features": (hidden_dim, hidden_dim), "bins": num_bins}
        super().__init__(encoder, context_encoder, latent_dim, _zuko_steps("NSF", latent_dim, context_dim, draws, options))


class ZukoStep(nn.Module):
    """A lazy transform of zuko as a step of a `Flow`."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        if z.numel() == 0:  # torch's transforms cannot reshape nothing
            return z, z.sum(-1)
        return self.transform(context).call_and_ladj(z)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        if y.numel() == 0:
            return y, y.sum(-1)
        z, log_det = self.transform(context).inv.call_and_ladj(y)
        return z, -log_det


def _zuko_steps(name: str, latent_dim: int, context_dim: int, draws: Draws, options: dict[str, Any]) -> list[nn.Module]:
    """The transforms of a flow of zuko, with initial weights from `draws`."""
    _checks.require(options["transforms"] >= 1, "num_steps", "at least 1", options["transforms"])
    flows = _import_flows()
    with torch.random.fork_rng(devices=[]):  # zuko draws initial weights from the global generator; they are replaced below
        transforms = list(getattr(flows, name)(latent_dim, context_dim, **options).transform.transforms)
    for place, transform in enumerate(transforms):
        _initialise(transform, draws.importance(place))
    return [ZukoStep(transform) for transform in transforms]


def _import_flows() -> ModuleType:
    """zuko's flows; its import turns off the checks of torch.distributions, which is not ours to leave so."""
    checked = Distribution._validate_args
    try:
        from zuko import flows
    except ImportError as error:
        _checks.fail("posterior", "zuko, for RealNVP and Spline", str(error), "pip install 'ddvi-fast[flows]'; Planar and IAF need nothing")
    finally:
        Distribution.set_default_validate_args(checked)
    return flows


def _initialise(transform: nn.Module, draws: Draws) -> None:
    """Torch's default distribution for every linear layer, and a narrow one for the last."""
    layers = [module for module in transform.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)]
    for number, layer in enumerate(layers):
        bound = layer.weight.shape[-1] ** -0.5 * (_FIRST_GAIN if number == len(layers) - 1 else 1.0)
        uniform_(layer.weight, -bound, bound, draws, 2 * number)
        uniform_(layer.bias, -bound, bound, draws, 2 * number + 1)
