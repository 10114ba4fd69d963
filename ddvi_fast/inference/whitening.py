"""Affine maps that whiten a posterior, fixed or dependent on the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NARROW, _WIDE = -6.0, 3.0  # bounds of a log-scale


class Whitening(nn.Module):
    """Affine map `u = shift + factor y` from the coordinates `y` of a chain to unconstrained parameters `u`.

    Args:
        shift: Shift [D].
        factor: Lower triangular factor [D, D].
    """

    def __init__(self, shift: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("factor", factor)

    def forward(self, y: Tensor, x: Any = None) -> Tensor:
        """Return `u` [.., D] at `y` [.., D]; the data `x` are not used."""
        return self.shift + y @ self.factor.T

    def inverse(self, u: Tensor, x: Any = None) -> Tensor:
        """Return `y` [.., D] at `u` [.., D]."""
        return torch.linalg.solve_triangular(self.factor, (u - self.shift).unsqueeze(-1), upper=False).squeeze(-1)

    def log_det(self, x: Any = None) -> Tensor:
        """Return `log |du/dy|`, a scalar."""
        return self.factor.diagonal().log().sum()

    @classmethod
    def of(cls, u: Tensor) -> Whitening:
        """Make the map for which samples `u` [n, D] have mean 0 and variance 1 in each coordinate of `y`."""
        return cls(u.mean(0), torch.diag(u.std(0).clamp(min=1e-6)))


class ConditionalWhitening(Whitening):
    """Affine map `u = shift + factor (mean(x) + scale(x) y)`, which gives a posterior that is narrow relative to the prior unit scale.

    Args:
        whitening: Map of all parameters.
        reader: Encoder from data [N, ...] to [N, 2 D]: `mean`, then the logarithm of `scale`.
    """

    def __init__(self, whitening: Whitening, reader: nn.Module) -> None:
        super().__init__(whitening.shift, whitening.factor)
        self.reader = reader

    def forward(self, y: Tensor, x: Any = None) -> Tensor:
        mean, log_scale = self.gaussian(x)
        return super().forward(mean + log_scale.exp() * y)

    def inverse(self, u: Tensor, x: Any = None) -> Tensor:
        mean, log_scale = self.gaussian(x)
        return (super().inverse(u) - mean) * (-log_scale).exp()

    def log_det(self, x: Any = None) -> Tensor:
        """Return `log |du/dy|` [N] for data `x` [N, ...]."""
        return super().log_det() + self.gaussian(x)[1].sum(-1)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-scale [N, D] of the Gaussian approximation of the posterior of data `x` [N, ...]."""
        mean, log_scale = self.reader(x).chunk(2, -1)
        return mean, log_scale.clamp(_NARROW, _WIDE)
