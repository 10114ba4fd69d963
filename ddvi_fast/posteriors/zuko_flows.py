"""RealNVP and spline flow posteriors, with the transforms of the package zuko."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ddvi_fast import _checks
from ddvi_fast.networks import uniform_, usual_defaults
from ddvi_fast.posteriors.flows import Flow
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws

_LAST_GAIN = 0.1  # factor on the initial weights of the last layers, so that the flow starts near the identity


class RealNVP(Flow):
    """Diagonal Gaussian transformed by affine coupling steps (Dinh et al. 2017).

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of the Gaussian.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context, [N, 2 D + C].
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 10).
        num_steps: Number of coupling steps (int, default 4). Every dimension changes in every second one.
        hidden_dim: Width of the two hidden layers of each step (int, default 64).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If zuko is not installed, or if `num_steps` is below 1.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = RealNVP(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    recordable = False  # zuko reads on the host which dimensions change, in every call

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, context_dim: int = 10, num_steps: int = 4,
        hidden_dim: int = 64, draws: Draws = Draws(0), coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim, hidden_dim=hidden_dim)
        steps = _zuko_steps("RealNVP", latent_dim, context_dim, draws, num_steps, hidden_dim)
        super().__init__(encoder, context_encoder, latent_dim, steps, coordinates, prior)


class Spline(Flow):
    """Diagonal Gaussian transformed by rational-quadratic splines (Durkan et al. 2019).

    The splines are autoregressive in the direction of sampling, as in an inverse autoregressive flow, and the identity outside [-5, 5].

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of the Gaussian.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context, [N, 2 D + C].
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 10).
        num_steps: Number of autoregressive steps (int, default 2).
        hidden_dim: Width of the two hidden layers of each step (int, default 64).
        num_bins: Number of pieces of each spline (int, default 8).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If zuko is not installed, or if `num_steps` is below 1.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = Spline(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, context_dim: int = 10, num_steps: int = 2,
        hidden_dim: int = 64, num_bins: int = 8, draws: Draws = Draws(0), coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim, hidden_dim=hidden_dim, num_bins=num_bins)
        steps = _zuko_steps("NSF", latent_dim, context_dim, draws, num_steps, hidden_dim, bins=num_bins)
        super().__init__(encoder, context_encoder, latent_dim, steps, coordinates, prior)


class ZukoStep(nn.Module):
    """Step of a `Flow` that applies a lazy transform of zuko."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        if z.numel() == 0:  # torch's transforms cannot reshape empty tensors
            return z, z.sum(-1)
        return self.transform(context).call_and_ladj(z)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        if y.numel() == 0:
            return y, y.sum(-1)
        z, log_det = self.transform(context).inv.call_and_ladj(y)
        return z, -log_det


def _zuko_steps(name: str, latent_dim: int, context_dim: int, draws: Draws, num_steps: int, hidden_dim: int, **options: Any) -> list[nn.Module]:
    """Make the transforms of zuko's flow `name`, with initial weights from `draws`."""
    _checks.require(num_steps >= 1, "num_steps", "at least 1", num_steps)
    options |= {"transforms": num_steps, "hidden_features": (hidden_dim, hidden_dim)}
    flows = _import_flows()
    with usual_defaults(), torch.random.fork_rng(devices=[]):  # zuko draws initial weights from the global generator; they are replaced below
        transforms = list(getattr(flows, name)(latent_dim, context_dim, **options).transform.transforms)
    for number, transform in enumerate(transforms):
        _initialize(transform, draws.importance(number))
    return [ZukoStep(transform) for transform in transforms]


def _import_flows() -> ModuleType:
    """Import `zuko.flows` and restore the validation of torch.distributions, which zuko turns off globally."""
    checked = Distribution._validate_args
    try:
        from zuko import flows
    except ImportError as error:
        _checks.fail("posterior", "zuko, for RealNVP and Spline", str(error), "pip install 'ddvi-fast[flows]'; Planar and IAF do not need it")
    finally:
        Distribution.set_default_validate_args(checked)
    return flows


def _initialize(transform: nn.Module, draws: Draws) -> None:
    """Initialize every linear layer with torch's default distribution, the last one with a tenth of its width."""
    layers = [module for module in transform.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)]
    for number, layer in enumerate(layers):
        bound = layer.weight.shape[-1] ** -0.5 * (_LAST_GAIN if number == len(layers) - 1 else 1.0)
        uniform_(layer.weight, -bound, bound, draws, 2 * number)
        uniform_(layer.bias, -bound, bound, draws, 2 * number + 1)
