"""The exact evidence log p(x) of a model with one or two latent dimensions, by quadrature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel

_PAIRS = 1 << 24  # node-example pairs held at a time
_VALUES = 1 << 23  # decoded values held at a time


@torch.no_grad()
def log_evidence_quadrature(model: LatentVariableModel, x: Tensor, bounds: Sequence[Sequence[float]] | None = None, resolution: int = 200) -> Tensor:
    """`log p(x) = log integral p(z) p(x | z) dz`, exact for D <= 2 (docs/method.md, section 2).

    Args:
        model: needs `prior`, `decoder` and `likelihood`.
        x: [N, ...].
        bounds: `(low, high)` of each latent dimension: midpoints of a plain grid, weighted by the prior's density. Left out,
            the nodes are the prior's own coordinates, which resolve priors far thinner than any affordable grid.
        resolution: nodes along a dimension, or along each arm or edge of the prior.

    Returns:
        nats, [N]. Twice the resolution should not change it; the error of a smooth integrand falls faster than its square.

    Raises:
        InputError: more than two latent dimensions.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=1), networks.MLP(1, [4], 3, zero_output=True), likelihoods.make("bernoulli"))
        >>> [round(value, 4) for value in log_evidence_quadrature(model, torch.ones(1, 3)).exp().tolist()]
        [0.125]
    """
    dim = model.prior.dim
    _checks.tensor(x, "x")
    _checks.require(x.dim() >= 2, "x", "shape [N, ...]", x)
    _checks.require(dim <= 2, "model", "at most 2 latent dimensions, for quadrature", f"D = {dim}")
    _checks.require(resolution >= 2, "resolution", "at least 2", resolution)
    _checks.require(len(x) >= 1, "x", "at least one example", x)
    flat = x.flatten(1)
    nodes, log_weights = model.prior.integration_nodes(resolution) if bounds is None else _grid(model, bounds, resolution)
    total = flat.new_full((len(flat),), -math.inf)
    for part, weights in _blocks(nodes.to(flat), log_weights.to(flat), flat.shape):
        joint = model.likelihood.pairwise(model.decoder(part), flat) + weights.unsqueeze(1)
        total = torch.logaddexp(total, torch.logsumexp(joint, 0))
    return total


def _blocks(nodes: Tensor, log_weights: Tensor, shape: torch.Size) -> Iterator[tuple[Tensor, Tensor]]:
    """Nodes in parts that fit into memory beside data of `shape` [N, P]."""
    examples, values = shape
    rows = max(1, min(_PAIRS // examples, _VALUES // max(values, 1)))
    return zip(nodes.split(rows), log_weights.split(rows), strict=True)


def _grid(model: LatentVariableModel, bounds: Sequence[Sequence[float]], resolution: int) -> tuple[Tensor, Tensor]:
    """Midpoints of a grid over `bounds`, weighted by cell size times prior density."""
    dim = model.prior.dim
    _check_bounds(bounds, dim)
    axes, log_cell = [], 0.0
    for low, high in bounds:
        width = (high - low) / resolution
        axes.append(low + width * (torch.arange(resolution, dtype=torch.float64) + 0.5))
        log_cell += math.log(width)
    nodes = torch.cartesian_prod(*axes).view(-1, dim)
    parts = [model.prior.log_prob(part) for part in nodes.split(1 << 16)]
    return nodes, torch.cat(parts) + log_cell


def _check_bounds(bounds: Sequence[Sequence[float]], dim: int) -> None:
    """One finite pair `low < high` for each latent dimension."""
    try:
        fits = len(bounds) == dim and all(-math.inf < low < high < math.inf for low, high in bounds)
    except (TypeError, ValueError):  # not pairs, or not of numbers
        fits = False
    _checks.require(fits, "bounds", f"one finite pair (low, high) for each of {dim} latent dimensions", bounds)
