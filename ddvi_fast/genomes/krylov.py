"""Leading eigenpairs of a large symmetric matrix from few products with it.

Randomized block Krylov iteration (Musco and Musco, 2015) with Rayleigh-Ritz on all blocks so far, and thick restarts. Products with the
matrix dominate the cost, so that residuals and Ritz values are computed from earlier products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_NOTHING = 1e-9  # directions shorter than this, relative to the largest eigenvalue, are rounding errors
_ROUNDING = 1e-6  # residuals as small as this, relative to the largest eigenvalue, are rounding errors of float32 products


@dataclass(frozen=True)
class Eigenpairs:
    """Leading eigenpairs.

    Args:
        values: Eigenvalues, float64 [k], largest first.
        vectors: Eigenvectors, float64 [n, k].
        residuals: ``|A v - value v|`` of each pair, float64 [k].
        products: Number of block products.
        converged: Whether the residuals met the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool


def leading_eigenpairs(
    product: Callable[[Tensor], Tensor], start: Tensor, count: int, tolerance: float, max_products: int, max_blocks: int = 8
) -> Eigenpairs:
    """Compute the `count` largest eigenvalues of a positive semidefinite matrix.

    Args:
        product: Function that multiplies the matrix with a float64 block [n, b].
        start: Random block [n, b], b at least `count`.
        count: Number of eigenpairs, k.
        tolerance: Largest residual relative to its eigenvalue. Rounding errors of float32 products are accepted, too.
        max_products: Largest number of block products.
        max_blocks: Largest number of blocks in memory, after which the iteration restarts from its best vectors (int, default 8).

    Example:
        >>> matrix = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
        >>> start = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.2, 0.3], [0.1, -0.4]], dtype=torch.float64)
        >>> leading_eigenpairs(lambda block: matrix @ block, start, 2, 1e-8, 20).values.round(decimals=6).tolist()
        [4.0, 3.0]
    """
    width = start.shape[1]
    block = basis = torch.linalg.qr(start)[0]
    images = torch.empty_like(basis[:, :0])
    products, converged = 0, False
    while not converged and products < max_products:
        products += 1
        images = torch.cat((images, product(block)), dim=1)
        values, vectors, images_of = _ritz(basis, images, width)
        defects = images_of - vectors * values
        residuals = defects.norm(dim=0)
        allowed = (tolerance * values[:count]).clamp_min(min(tolerance, _ROUNDING) * float(values[0]))
        block = _new_directions(basis, defects, _NOTHING * float(values[0]))
        # Without a new direction the span is invariant under the matrix, and the eigenpairs are exact.
        converged = bool((residuals[:count] <= allowed).all()) or not block.shape[1]
        if basis.shape[1] + width > max_blocks * width:
            basis, images = vectors, images_of
        basis = torch.cat((basis, block), dim=1)
    return Eigenpairs(values[:count], vectors[:, :count], residuals[:count], products, converged)


def _ritz(basis: Tensor, images: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best `width` eigenvalues and eigenvectors within the span of an orthonormal basis, and the images of these vectors."""
    small = basis.mT @ images
    values, rotation = torch.linalg.eigh((small + small.mT) / 2)
    rotation = rotation.flip(1)[:, :width]
    return values.flip(0)[:width], basis @ rotation, images @ rotation


def _new_directions(basis: Tensor, defects: Tensor, least: float) -> Tensor:
    """Orthonormal basis of the part of `defects` orthogonal to `basis`, without directions shorter than `least`."""
    rest = defects
    for _ in range(2):  # the second pass removes the rounding errors of the first
        rest = rest - basis @ (basis.mT @ rest)
    left, lengths, _ = torch.linalg.svd(rest, full_matrices=False)
    block = left[:, lengths > least][:, : basis.shape[0] - basis.shape[1]]
    return torch.linalg.qr(block - basis @ (basis.mT @ block))[0]
