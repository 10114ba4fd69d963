"""Quadrature rules for uniform and normal variables, from which priors build their integration nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.precision import as_float64


def uniform_quadrature(count: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and log-weights, float64 [count] each, of a uniform variable on [0, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(np.log(weights / 2))


def normal_quadrature(count: int, reach: float) -> tuple[Tensor, Tensor]:
    """Return nodes and log-weights of a standard normal variable that cover its tails.

    A likelihood can be so narrow that the evidence depends on the prior's tails, which Gauss-Hermite nodes do not reach. These nodes are
    evenly spaced in `asinh`, where the trapezoidal rule is exact to rounding once they are half a unit apart.

    Args:
        count: Smallest number of nodes (int). More are used if the spacing would exceed half a unit.
        reach: Distance of the outermost nodes, in standard deviations (float).

    Returns:
        Nodes and log-weights, float64 [M] each, M >= count.
    """
    count = max(count, math.ceil(4 * math.asinh(reach)) + 1)
    even = torch.linspace(-math.asinh(reach), math.asinh(reach), count, **as_float64)
    nodes = torch.sinh(even)
    return nodes, torch.log_softmax(-0.5 * nodes**2 + torch.log(torch.cosh(even)), 0)


def normal_grid(dim: int, count: int, reach: float) -> tuple[Tensor, Tensor]:
    """Return the product rule of `normal_quadrature` in `dim` dimensions (1 or 2): nodes [M, dim] and log-weights [M], float64.

    Raises:
        InputError: If `dim` is above 2.
    """
    _checks.require(dim <= 2, "prior", "at most 2 latent dimensions, for integration nodes", f"D = {dim}")
    nodes, log_weights = normal_quadrature(count, reach)
    return torch.cartesian_prod(*[nodes] * dim).view(-1, dim), torch.cartesian_prod(*[log_weights] * dim).view(-1, dim).sum(-1)


def nodes_across(resolution: int) -> int:
    """Return the number of nodes across an arm or edge if there are `resolution` nodes along it."""
    return resolution // 5 + 1
