"""Fixed affine map from the coordinates of a posterior to unconstrained parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.standardization import Columns, Moments, listed

if TYPE_CHECKING:
    from ddvi_fast.inference.support import Support

_SINGLE = torch.finfo(torch.float32)
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
        self.register_buffer("factor", factor.contiguous())  # as it is loaded: products round by the order in memory

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
    def of(cls, u: Tensor, names: list[str] | None = None, moments: Moments | None = None) -> Whitening:
        """Make the map for which samples `u` [n, D] have mean 0 and variance 1 in each coordinate of `y`, or quartiles +-0.67 with heavy tails.

        Args:
            u: Samples.
            names: Names of the coordinates in messages. Default: their numbers.
            moments: Moments of all samples, of which `u` are a part. Default: those of `u`.

        Raises:
            InputError: If a coordinate does not vary.
        """
        columns = Columns.of(u) if moments is None else Columns.of(u).of_all(moments)
        still = f"{listed(~columns.varies, names)} without spread"
        _checks.require(bool(columns.varies.all()), "simulate, z", "parameters that vary", still)
        scale = columns.scale * math.sqrt(len(u) / (len(u) - 1))  # of the population
        return cls(columns.center.float(), torch.diag(scale.float().clamp(min=_SINGLE.tiny)))


def notices(support: Support, u: Tensor) -> list[str]:
    """Describe what `Whitening.of` does to unconstrained simulations `u` [n, D]; one sentence each."""
    heavy = Columns.of(u).heavy
    told = [f"simulate, z: {listed(heavy, support.coordinates())} with heavy tails, scaled by the quartiles"] if heavy.any() else []
    return [*told, *coarse(support, u, "simulate, z")]


def coarse(support: Support, u: Tensor, argument: str) -> list[str]:
    """Describe which parameters at unconstrained `u` [n, D] vary by no more than the rounding of single precision; at most one sentence."""
    columns = Columns.of(_entries(support, u))
    unresolved = columns.varies & (_RESOLVED * _SINGLE.eps * columns.center.abs() > columns.scale)
    names = listed(unresolved, support.entries())
    return [f"{argument}: {names} vary too little around their mean for single precision; subtract a constant"] if unresolved.any() else []


def require_resolved(support: Support, u: Tensor) -> None:
    """Require that single precision, in which a posterior draws, holds the parameters at unconstrained `u` [n, D].

    Raises:
        InputError: If one of a parameter's values is above its range, or most of them are below it.
    """
    size = _entries(support, u).abs()
    middle = size.median(0).values
    outside = (size > _SINGLE.max).any(0) | (middle > 0) & (middle < _SINGLE.tiny)
    expected = f"parameters that single precision holds, of a size from {_SINGLE.tiny:.0e} to {_SINGLE.max:.0e}"
    _checks.require(not bool(outside.any()), "simulate, z", expected, f"{listed(outside, support.entries())} beyond", "use other units")


def _entries(support: Support, u: Tensor) -> Tensor:
    """The entries of the parameters at unconstrained `u` [n, D], float64 [n, entries]."""
    z, _ = support.constrain(u.double())
    return support.flatten(z)
