"""Planar flow posterior (Rezende and Mohamed 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ddvi_fast import _checks
from ddvi_fast.networks import linear
from ddvi_fast.posteriors.flows import Flow
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws

_BISECTIONS = 40


class PlanarStep(nn.Module):
    """Planar step `y = z + u tanh(w . z + b)`, where `u`, `w` and `b` are linear in the context (Rezende and Mohamed 2015).

    `u` is shifted along `w` so that `w . u > -1`, where the step is invertible.

    Args:
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
    """

    @_checks.typed
    def __init__(self, latent_dim: int, context_dim: int, draws: Draws = Draws(0)) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.layer = linear(context_dim, 2 * latent_dim + 1, draws, 0)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return y [.., N, D] and `log |det dy/dz|` [.., N] of `z` [.., N, D] with context [N, C]."""
        shift, normal, offset, slope = self._directions(context)
        bend = torch.tanh((z * normal).sum(-1, keepdim=True) + offset)
        return z + shift * bend, _planar_log_det(slope, bend)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return z [.., N, D] and `log |det dy/dz|` [.., N] of `y` [.., N, D]: `a = w . z` is the root of `a + (w . u) tanh(a + b) = w . y`."""
        shift, normal, offset, slope = self._directions(context)
        goal = (y * normal).sum(-1, keepdim=True)
        along = _planar_root(goal.detach(), slope.detach(), offset.detach())
        bend = torch.tanh(along + offset)
        # A Newton step at the root does not change the value; it has the gradient.
        along = along - (along + slope * bend - goal) / (1 + slope * (1 - bend.square()))
        bend = torch.tanh(along + offset)
        return y - shift * bend, _planar_log_det(slope, bend)

    def _directions(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The vectors `u` and `w` [N, D], and `b` and `w . u` [N, 1]."""
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
    """Diagonal Gaussian transformed by planar steps, each of which bends space along one direction (Rezende and Mohamed 2015).

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of the Gaussian.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context, [N, 2 D + C].
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 10).
        num_steps: Number of planar steps (int, default 8).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If `num_steps` is below 1.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = Planar(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, context_dim: int = 10, num_steps: int = 8,
        draws: Draws = Draws(0), coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim)
        steps = [PlanarStep(latent_dim, context_dim, draws.importance(step)) for step in range(num_steps)]
        super().__init__(encoder, context_encoder, latent_dim, steps, coordinates, prior)
