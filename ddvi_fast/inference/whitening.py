"""Fixed affine map from the coordinates of a posterior to unconstrained parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.standardization import Columns, listed

_RESOLVED = 20.0  # least number of values of single precision in a standard deviation


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
        """Return `y` [.., D] at `u` [.., D], computed in float64: parameters may vary little around a large value."""
        y = torch.linalg.solve_triangular(self.factor.double(), (u.double() - self.shift).unsqueeze(-1), upper=False)
        return y.squeeze(-1).to(self.factor.dtype)

    def log_det(self) -> Tensor:
        """Return `log |du/dy|`, a scalar."""
        return self.factor.diagonal().log().sum()

    @classmethod
    def of(cls, u: Tensor, names: list[str] | None = None) -> Whitening:
        """Make the map for which samples `u` [n, D] have mean 0 and variance 1 in each coordinate of `y`, or quartiles +-0.67 with heavy tails.

        Args:
            u: Samples.
            names: Names of the coordinates in messages. Default: their numbers.

        Raises:
            InputError: If a coordinate does not vary.
        """
        columns = Columns.of(u)
        still = f"{listed(~columns.varies, names)} without spread"
        _checks.require(bool(columns.varies.all()), "simulate, z", "parameters that vary", still)
        scale = columns.scale * math.sqrt(len(u) / (len(u) - 1))  # of the population
        return cls(columns.center.float(), torch.diag(scale.float().clamp(min=torch.finfo(torch.float32).tiny)))


def notices(u: Tensor, names: list[str]) -> list[str]:
    """Describe what `Whitening.of` does to coordinates `u` [n, D] called `names`; one sentence each."""
    columns, found = Columns.of(u), []
    if columns.heavy.any():
        found.append(f"simulate, z: {listed(columns.heavy, names)} with heavy tails, scaled by the quartiles")
    unresolved = _RESOLVED * torch.finfo(torch.float32).eps * columns.center.abs() > columns.scale
    if unresolved.any():
        found.append(f"simulate, z: {listed(unresolved, names)} vary too little around their mean for single precision; subtract a constant")
    return found
