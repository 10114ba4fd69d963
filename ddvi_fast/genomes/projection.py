"""Scores of samples that were not fitted: least squares for missing calls, and correction of the shrinkage of a projection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast.genomes.standardise import StandardisedRows

# A direction that the calls determine less than this, relative to the best one, has score 0.
_LEAST_SHARE = 1e-6
_ROWS = 1 << 12  # eigenproblems at a time


class Projected(NamedTuple):
    """Scores of some samples.

    Attributes:
        scores: Least-squares scores, float32 [N, k].
        plain: Scores with missing calls replaced by the mean, float32 [N, k].
        called: Share of the varying variants with a call, float64 [N].
    """

    scores: Tensor
    plain: Tensor
    called: Tensor


def least_squares_scores(matrix: StandardisedRows, loadings: Tensor) -> Projected:
    """Scores `y` of each row that minimize ``sum over its calls (x_j - loadings_j y)^2``.

    Without missing calls and for orthonormal `loadings` [M, k] these are the projections.
    """
    right = loadings.to(matrix.device)
    num_rows, (upper, lower) = matrix.num_rows, torch.triu_indices(right.shape[1], right.shape[1], device=matrix.device)
    products = torch.zeros(num_rows, right.shape[1], dtype=torch.float64, device=matrix.device)
    normal = torch.zeros(num_rows, len(upper), dtype=torch.float64, device=matrix.device)
    calls = torch.zeros(num_rows, dtype=torch.float64, device=matrix.device)
    varying = matrix.varying()
    for first, width in matrix.chunks():
        part = right[first : first + width]
        outer = part[:, upper] * part[:, lower]
        for rows in matrix.row_slices():
            products[rows] += (matrix.values(rows, first, width) @ part).double()
            called = matrix.called(rows, first, width)
            calls[rows] += called @ varying[first : first + width]
            number = called.sum(0)
            # Variants that all samples of the tile have, or none, need no product.
            normal[rows] += outer[number == len(called)].double().sum(0)
            some = (number > 0) & (number < len(called))
            if some.any():
                normal[rows] += (called[:, some] @ outer[some]).double()
    full = torch.zeros(num_rows, right.shape[1], right.shape[1], dtype=torch.float64, device=matrix.device)
    full[:, upper, lower] = full[:, lower, upper] = normal
    return Projected(_solve(full, products).float(), products.float(), calls / varying.sum().clamp_min(1))


def unshrunk_scores(scores: Tensor, squares: Tensor, singular_values: Tensor) -> Tensor:
    """Scores that samples would have if each had been fitted with the others, float32 [N, k].

    Components overfit the noise of the samples they were fitted to, so that projections of new samples shrink towards the origin, the more
    the weaker a component is. Here each sample is added to the singular value decomposition of the fitted ones, which gains the direction
    of its residual; a rotation and a factor then map the new components onto the old ones so that the fitted samples keep their scores, in
    least squares (online augmentation, decomposition and Procrustes: Zhang, Dey and Lee 2020, Bioinformatics 36).

    Args:
        scores: Projections of new samples on the fitted components, [N, k].
        squares: Sum of the squares of the standardized genotypes of each sample, [N].
        singular_values: Singular values of the fitted components, [k].
    """
    fitted, pieces = singular_values.double().square(), zip(scores.double().split(_ROWS), squares.double().split(_ROWS), strict=True)
    return torch.cat([_augmented(part, square, fitted) for part, square in pieces]).float()


def _augmented(scores: Tensor, squares: Tensor, fitted: Tensor) -> Tensor:
    count = len(fitted)
    residual = (squares - scores.square().sum(1)).clamp_min(0).sqrt()
    sample = torch.cat((scores, residual.unsqueeze(1)), 1)
    before = torch.diag(nn.functional.pad(fitted, (0, 1)))
    vectors = torch.linalg.eigh(before + sample.unsqueeze(2) * sample.unsqueeze(1)).eigenvectors[..., 1:]
    # New scores of the fitted samples are their old ones, U D, times `turned`; a rotation and one factor map them back.
    turned = vectors[:, :count]
    left, stretch, right = torch.linalg.svd(turned.mT * fitted)
    factor = stretch.sum(1) / (fitted.unsqueeze(1) * turned.square()).sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return (sample.unsqueeze(1) @ vectors @ (left @ right)).squeeze(1) * factor.unsqueeze(1)


def _solve(normal: Tensor, products: Tensor) -> Tensor:
    inverse = torch.linalg.pinv(normal, rtol=_LEAST_SHARE, hermitian=True)
    return (inverse @ products.unsqueeze(-1)).squeeze(-1)
