"""Fixed affine map from the coordinates of a posterior to unconstrained parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """Affine map `u = shift + factor y` from the coordinates `y` of a posterior to unconstrained parameters `u`.

    Args:
        shift: Shift [D].
        factor: Lower triangular factor [D, D].
    """

    def __init__(self, shift: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("factor", factor)

    def forward(self, y: Tensor) -> Tensor:
        """Return `u` [.., D] at `y` [.., D]."""
        return self.shift + y @ self.factor.T

    def inverse(self, u: Tensor) -> Tensor:
        """Return `y` [.., D] at `u` [.., D]."""
        return torch.linalg.solve_triangular(self.factor, (u - self.shift).unsqueeze(-1), upper=False).squeeze(-1)

    def log_det(self) -> Tensor:
        """Return `log |du/dy|`, a scalar."""
        return self.factor.diagonal().log().sum()

    @classmethod
    def of(cls, u: Tensor) -> Whitening:
        """Make the map for which samples `u` [n, D] have mean 0 and variance 1 in each coordinate of `y`."""
        return cls(u.mean(0), torch.diag(u.std(0).clamp(min=1e-6)))
