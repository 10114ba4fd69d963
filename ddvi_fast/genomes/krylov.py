"""Leading eigenpairs of a large symmetric matrix from few products with it.

Randomised block Krylov iteration (Musco and Musco, 2015) with Rayleigh-Ritz on everything seen so far, and thick restarts. Products with
the matrix are what costs, so each is used: residuals and Ritz values come from the products made before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_NOTHING = 1e-9  # directions shorter than this, relative to the largest eigenvalue, are rounding
_ROUNDING = 1e-6  # residuals as small as this, relative to the largest eigenvalue, are what float32 products leave


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues float64 [k], largest first, and eigenvectors float64 [n, k].

    `residuals` are ``|A v - value v|`` [k], `products` the number of block products, `converged` whether residuals met the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool


def leading_eigenpairs(
    product: Callable[[Tensor], Tensor], start: Tensor, count: int, tolerance: float, max_products: int, max_blocks: int = 8
) -> Eigenpairs:
    """The `count` largest eigenvalues of a positive semidefinite matrix.

    Args:
        product: the matrix times a float64 block [n, b].
        start: a random block [n, b], b at least `count`.
        count: k.
        tolerance: residuals wanted, relative to the eigenvalue that each belongs to; what float32 products leave is accepted, too.
        max_products: block products at the most.
        max_blocks: blocks kept before the iteration starts again from its best vectors.

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
        # Without a new direction the span is the matrix's own, and its eigenpairs exact.
        converged = bool((residuals[:count] <= allowed).all()) or not block.shape[1]
        if basis.shape[1] + width > max_blocks * width:
            basis, images = vectors, images_of
        basis = torch.cat((basis, block), dim=1)
    return Eigenpairs(values[:count], vectors[:, :count], residuals[:count], products, converged)


def _ritz(basis: Tensor, images: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `width` eigenvalues and eigenvectors within the span of an orthonormal basis, and the images of those vectors."""
    small = basis.mT @ images
    values, rotation = torch.linalg.eigh((small + small.mT) / 2)
    rotation = rotation.flip(1)[:, :width]
    return values.flip(0)[:width], basis @ rotation, images @ rotation


def _new_directions(basis: Tensor, defects: Tensor, least: float) -> Tensor:
    """An orthonormal basis of what `defects` hold beyond `basis`, dropping what is shorter than `least`."""
    rest = defects
    for _ in range(2):  # once leaves rounding errors, twice does not
        rest = rest - basis @ (basis.mT @ rest)
    left, lengths, _ = torch.linalg.svd(rest, full_matrices=False)
    block = left[:, lengths > least][:, : basis.shape[0] - basis.shape[1]]
    return torch.linalg.qr(block - basis @ (basis.mT @ block))[0]
