"""Affine maps by which chains work near mean 0 and variance 1: of one data set, or different for all data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NARROW, _WIDE = -6.0, 3.0  # limits of a log-scale


class Whitening(nn.Module):
    """The map `u = shift + factor y` [.., D].

    Args:
        shift: [D].
        factor: [D, D], lower triangular.
    """

    def __init__(self, shift: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("factor", factor)

    def forward(self, y: Tensor, x: Any = None) -> Tensor:
        """Unconstrained parameters at the chain's `y` [.., D]; the data `x` do not matter here."""
        return self.shift + y @ self.factor.T

    def inverse(self, u: Tensor, x: Any = None) -> Tensor:
        """The chain's coordinates of `u` [.., D]."""
        return torch.linalg.solve_triangular(self.factor, (u - self.shift).unsqueeze(-1), upper=False).squeeze(-1)

    def log_det(self, x: Any = None) -> Tensor:
        """`log |du/dy|`, a scalar."""
        return self.factor.diagonal().log().sum()

    @classmethod
    def of(cls, u: Tensor) -> Whitening:
        """The map under which rows `u` [n, D] have mean 0 and variance 1 in each coordinate."""
        return cls(u.mean(0), torch.diag(u.std(0).clamp(min=1e-6)))


class ConditionalWhitening(Whitening):
    """The map `u = shift + factor (mean(x) + scale(x) y)`: what is narrow beside the prior is wide enough for a chain to see.

    Args:
        whitening: of all parameters.
        reader: from data [N, ...] to `mean` and the logarithm of `scale` side by side, [N, 2 D].
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
        """`log |du/dy|` for each row of `x`, [N]."""
        return super().log_det() + self.gaussian(x)[1].sum(-1)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale [N, D] of a Gaussian approximation of the posterior."""
        mean, log_scale = self.reader(x).chunk(2, -1)
        return mean, log_scale.clamp(_NARROW, _WIDE)
