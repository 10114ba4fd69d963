"""Gaussian posterior with a full covariance matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.posteriors.flows import Flow
from ddvi_fast.priors import Prior


class FullGaussian(Flow):
    """Gaussian posterior with a full covariance: `z = mean(x) + scale(x) L(x) e`, `e ~ N(0, I)`, with unit lower triangular `L`.

    The entries of `L` below the diagonal are the context, `D (D - 1) / 2` outputs of the encoders. With the context at zero the posterior is the
    diagonal Gaussian of the encoder.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, D (D - 1) / 2]; None if the encoder's output ends with
            these entries.
        latent_dim: Number of latent dimensions, D (int).
        coordinates: Coordinates of the Gaussian, see `Posterior` (default ``encoder``, in which the formula above holds; in the others `L` acts on
            the whole variable).
        prior: Prior of the latents, for the prior's coordinates.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = FullGaussian(networks.MLP(5, [8], 6 + 3), None, latent_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, coordinates: str = "encoder", prior: Prior | None = None
    ) -> None:
        _checks.at_least(1, latent_dim=latent_dim)
        super().__init__(encoder, context_encoder, latent_dim, [UnitTriangular(latent_dim)], coordinates, prior)


class UnitTriangular(nn.Module):
    """Step of a `Flow`: the product with a unit lower triangular matrix whose entries below the diagonal are the context."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.tril_indices(latent_dim, latent_dim, -1, device="cpu"), persistent=False)

    def factor(self, context: Tensor, dim: int) -> Tensor:
        """Return the matrices [.., D, D] of contexts [.., D (D - 1) / 2]."""
        below = context.new_zeros(*context.shape[:-1], dim, dim)
        below[..., self.places[0], self.places[1]] = context
        return below + torch.eye(dim, dtype=context.dtype, device=context.device)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return (self.factor(context, z.shape[-1]) @ z.unsqueeze(-1)).squeeze(-1), torch.zeros_like(z[..., 0])

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.factor(context, y.shape[-1])
        z = torch.linalg.solve_triangular(factor, y.unsqueeze(-1), upper=False, unitriangular=True)
        return z.squeeze(-1), torch.zeros_like(y[..., 0])
