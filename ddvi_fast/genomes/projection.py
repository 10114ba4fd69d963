"""Scores of samples that were not fitted: least squares for missing calls, and correction of the shrinkage of a projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast.genomes.standardise import StandardisedRows

# A direction that the calls determine less than this, relative to the best one, has score 0.
_LEAST_SHARE = 1e-6
_ROWS = 1 << 12  # eigenproblems at a time


def least_squares_scores(matrix: StandardisedRows, loadings: Tensor) -> Tensor:
    """Scores `y` of each row that minimize ``sum over its calls (x_j - loadings_j y)^2``, float32 [N, k].

    Without missing calls and for orthonormal `loadings` [M, k] these are the projections.
    """
    right = loadings.to(matrix.device)
    num_rows, count = matrix.num_rows, right.shape[1]
    products = torch.zeros(num_rows, count, dtype=torch.float64, device=matrix.device)
    normal = torch.zeros(num_rows, count * count, dtype=torch.float64, device=matrix.device)
    for first, width in matrix.chunks():
        part = right[first : first + width]
        outer = (part.unsqueeze(2) * part.unsqueeze(1)).flatten(1)
        for rows in matrix.row_slices():
            products[rows] += (matrix.values(rows, first, width) @ part).double()
            normal[rows] += (matrix.called(rows, first, width) @ outer).double()
    return _solve(normal.view(num_rows, count, count), products).float()


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
