"""Normalizing flows: a diagonal Gaussian transformed by invertible steps with a context of `x`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops
from ddvi_fast.posteriors.base import Encoded, Posterior, draw_start, encode_with_context, require_encoders
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class Flow(Posterior):
    """Base class of normalizing flows: `z = f_S(... f_1(z_0; c(x)) ...; c(x))`, `z_0 ~ N(mean(x), diag exp(log_var(x)))`.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of the Gaussian.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context, [N, 2 D + C].
        latent_dim: Number of latent dimensions, D (int).
        steps: Modules with `forward(z, context) -> (y, log |det dy/dz|)` and `inverse(y, context) -> (z, log |det dy/dz|)`, for z and y of
            shape [.., N, D] and log-determinants [.., N].
        coordinates: Coordinates of the flow, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If there are no steps.
    """

    tractable = True

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, steps: list[nn.Module],
        coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        super().__init__(coordinates, prior)
        _checks.require(len(steps) >= 1, "num_steps", "at least 1", len(steps))
        require_encoders(encoder=encoder, context_encoder=context_encoder)
        self.encoder, self.context_encoder, self.latent_dim = encoder, context_encoder, latent_dim
        self.steps = nn.ModuleList(steps)

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        """Return mean and log-variance [N, D] of the Gaussian, and the context [N, C]."""
        return encode_with_context(self, x, draws)

    def draw(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw samples as in `Posterior`, without inverting the flow."""
        start = draw_start(*self.start(encoded), num_samples, draws)
        z, log_det = transform(self.steps, start, encoded.context)
        return z, log_det - ops.gaussian_log_prob(start, *self.start(encoded))

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        return transform(self.steps, draw_start(*self.start(encoded), num_samples, draws), encoded.context)[0].unsqueeze(0)

    def log_ratio(self, encoded: Encoded, path: Tensor) -> Tensor:
        start, log_det = inverse_transform(self.steps, path[-1], encoded.context)
        return log_det - ops.gaussian_log_prob(start, *self.start(encoded))


def transform(steps: nn.ModuleList, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Apply all steps to `z` [.., N, D] with context [N, C]; returns y [.., N, D] and `log |det dy/dz|` [.., N]."""
    total = torch.zeros_like(z[..., 0])
    for step in steps:
        z, log_det = step(z, context)
        total = total + log_det
    return z, total


def inverse_transform(steps: nn.ModuleList, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Invert all steps at `y` [.., N, D] with context [N, C]; returns z [.., N, D] and `log |det dy/dz|` [.., N]."""
    total = torch.zeros_like(y[..., 0])
    for step in reversed(steps):
        y, log_det = step.inverse(y, context)
        total = total + log_det
    return y, total
