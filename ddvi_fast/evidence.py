"""Evidence log p(x): exact by quadrature for one or two latent dimensions, and estimated by annealed importance sampling for any number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.annealed import AnnealedEvidence, log_evidence_annealed
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.precision import as_float64

__all__ = ["AnnealedEvidence", "log_evidence_annealed", "log_evidence_quadrature"]

_PAIRS = 1 << 24  # node-example pairs held at a time
_VALUES = 1 << 20  # decoded values held at a time: few enough for the cache
_TOLERANCE = 1e-3  # nats
_FIRST_RESOLUTION = 20  # smallest resolution that is tried
_NODES = 6.0  # effective number of nodes that carry the posterior of a resolved integral
_NEGLIGIBLE = 40.0  # nats


@torch.no_grad()
def log_evidence_quadrature(model: LatentVariableModel, x: Tensor, bounds: Sequence[Sequence[float]] | None = None, resolution: int = 200) -> Tensor:
    """Compute `log p(x) = log integral p(z) p(x | z) dz` for at most two dimensions (docs/method.md, section 2).

    These are the dimensions of the latents or, for a prior that is known by its samples, of their noise.

    With the prior's nodes the quadrature is adaptive: the resolution is doubled, for the rows that need it, from an eighth of `resolution`
    up to `resolution`. A row is finished if the last doubling changed its result by less than 0.001 nats (or by the rounding of the data
    type), and if at least 6 nodes carry its posterior (1 / sum of squared posterior weights). The error of these rules falls faster than
    any power of the resolution, so the change bounds the error of the result. Nodes whose prior weight is so small that they cannot
    contribute exp(-40) of any row are not decoded.

    Args:
        model: The latent-variable model, of which `prior`, `decoder` and `likelihood` are used.
        x: Data [N, ...], N >= 1.
        bounds: Pair `(low, high)` for each latent dimension, for a midpoint rule on a regular grid weighted by the prior's density. Default:
            the prior's own quadrature nodes, which resolve priors that are too narrow for a regular grid.
        resolution: Number of nodes along each dimension of the grid, or the largest number along each arm or edge of the prior (int,
            default 200).

    Returns:
        Log-evidence [N] in nats. Doubling the resolution should not change it.

    Raises:
        InputError: If the model has more than two latent dimensions (and more than two coordinates of noise), or if an argument is out of
            range.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=1), networks.MLP(1, [4], 3, zero_output=True), likelihoods.make("bernoulli"))
        >>> [round(value, 4) for value in log_evidence_quadrature(model, torch.ones(1, 3)).exp().tolist()]
        [0.125]
    """
    dim = model.prior.dim if bounds is not None or model.prior.noise_dim == 0 else min(model.prior.dim, model.prior.noise_dim)
    _checks.tensor(x, "x")
    _checks.require(x.dim() >= 2, "x", "shape [N, ...]", x)
    _checks.require(dim <= 2, "model", "at most 2 latent dimensions", f"D = {dim}")
    _checks.require(resolution >= 2, "resolution", "at least 2", resolution)
    _checks.require(len(x) >= 1, "x", "at least one example", x)
    if bounds is None:
        return _adaptive(model, x.flatten(1), resolution)
    return _integrate(model, x.flatten(1), *_grid(model, bounds, resolution)).total


class _Integral(NamedTuple):
    """Sums over nodes for each row [N]: log-evidence, log of the sum of squared terms, largest log-likelihood."""

    total: Tensor
    squares: Tensor
    highest: Tensor

    def resolved(self, coarser: Tensor) -> Tensor:
        """Whether the integral equals that of fewer nodes, bool [N], and several nodes carry it."""
        rounding = 8 * torch.finfo(self.total.dtype).eps * self.total.abs()
        same = (self.total - coarser).abs() < rounding.clamp(min=_TOLERANCE)
        return same & (2 * self.total - self.squares > math.log(_NODES))

    def negligible(self) -> float:
        """Log-weight of the prior below which a node contributes less than `exp(-_NEGLIGIBLE)` of every row."""
        lowest = float((self.total - self.highest).min()) - _NEGLIGIBLE
        return lowest if lowest == lowest else -math.inf


def _adaptive(model: LatentVariableModel, x: Tensor, resolution: int) -> Tensor:
    """Log-evidence [N] of rows [N, P] by the prior's nodes."""
    result, rows = x.new_empty(len(x)), torch.arange(len(x), device=x.device)
    coarser, negligible = x.new_full((len(x),), math.nan), -math.inf
    for number in _resolutions(resolution):
        nodes, log_weights = model.prior.integration_nodes(number)
        kept = log_weights >= negligible
        found = _integrate(model, x[rows], nodes[kept], log_weights[kept])
        result[rows] = found.total
        left = ~found.resolved(coarser)
        if not left.any():
            break
        rows, coarser = rows[left], found.total[left]
        negligible = _Integral(*(value[left] for value in found)).negligible()
    return result


def _resolutions(resolution: int) -> list[int]:
    """Increasing resolutions up to `resolution`, each about twice the one before."""
    coarse = [resolution // factor for factor in (8, 4, 2)]
    return [*(number for number in coarse if number >= _FIRST_RESOLUTION), resolution]


def _integrate(model: LatentVariableModel, x: Tensor, nodes: Tensor, log_weights: Tensor) -> _Integral:
    """Sums over nodes [M, D] with log-weights [M] for rows [N, P]."""
    found = _Integral(*(x.new_full((len(x),), -math.inf) for _ in range(3)))
    for part, weights in _blocks(nodes.to(x), log_weights.to(x), x.shape):
        pairs = model.likelihood.pairwise(model.decoder(part), x)
        joint = pairs + weights.unsqueeze(1)
        found = _Integral(
            torch.logaddexp(found.total, torch.logsumexp(joint, 0)),
            torch.logaddexp(found.squares, torch.logsumexp(2 * joint, 0)),
            torch.maximum(found.highest, pairs.amax(0)),
        )
    return found


def _blocks(nodes: Tensor, log_weights: Tensor, shape: torch.Size) -> Iterator[tuple[Tensor, Tensor]]:
    """Split the nodes into parts that fit into memory with data of `shape` [N, P]."""
    examples, values = shape
    rows = max(1, min(_PAIRS // examples, _VALUES // max(values, 1)))
    return zip(nodes.split(rows), log_weights.split(rows), strict=True)


def _grid(model: LatentVariableModel, bounds: Sequence[Sequence[float]], resolution: int) -> tuple[Tensor, Tensor]:
    """Midpoints [M, D] of a grid over `bounds`, and their log-weights [M]: cell size times prior density."""
    dim = model.prior.dim
    _check_bounds(bounds, dim)
    axes, log_cell = [], 0.0
    for low, high in bounds:
        width = (high - low) / resolution
        axes.append(low + width * (torch.arange(resolution, **as_float64) + 0.5))
        log_cell += math.log(width)
    nodes = torch.cartesian_prod(*axes).view(-1, dim)
    parts = [model.prior.log_prob(part) for part in nodes.split(1 << 16)]
    return nodes, torch.cat(parts) + log_cell


def _check_bounds(bounds: Sequence[Sequence[float]], dim: int) -> None:
    """Require one finite pair `low < high` for each latent dimension."""
    try:
        fits = len(bounds) == dim and all(-math.inf < low < high < math.inf for low, high in bounds)
    except (TypeError, ValueError):  # not pairs, or not of numbers
        fits = False
    _checks.require(fits, "bounds", f"one finite pair (low, high) for each of {dim} latent dimensions", bounds)
