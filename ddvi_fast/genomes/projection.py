"""Scores of samples that were not fitted: with many missing calls, and without the shrinkage of a plain projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast.genomes.standardise import StandardisedRows

# A direction that the calls determine worse than this, relative to the best, is left at 0.
_LEAST_SHARE = 1e-6
_ROWS = 1 << 12  # eigenproblems at a time


def least_squares_scores(matrix: StandardisedRows, loadings: Tensor) -> Tensor:
    """For each row the scores `y` that minimise ``sum over its calls (x_j - loadings_j y)^2``, float32 [N, k].

    With all calls present, and orthonormal `loadings` [M, k], these are the plain products.
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
    """Scores that samples would have, had each of them been fitted with the others: [N, k] -> float32 [N, k].

    Components lean towards the samples that they were fitted to: noise of these is part of what is large. A new sample's projection lacks
    that part, the more the weaker a component is. So each sample is added to the singular value decomposition of the fitted ones, which then
    has a direction more, its residual's; the new components are turned and stretched onto the old ones so that the fitted samples come to
    lie where they lay, in least squares (online augmentation, decomposition and Procrustes: Zhang, Dey and Lee 2020, Bioinformatics 36).

    Args:
        scores: plain projections of new samples on the fitted components.
        squares: sum of the squares of each sample's standardised genotypes, [N].
        singular_values: of the fitted components, [k].
    """
    fitted, pieces = singular_values.double().square(), zip(scores.double().split(_ROWS), squares.double().split(_ROWS), strict=True)
    return torch.cat([_augmented(part, square, fitted) for part, square in pieces]).float()


def _augmented(scores: Tensor, squares: Tensor, fitted: Tensor) -> Tensor:
    count = len(fitted)
    residual = (squares - scores.square().sum(1)).clamp_min(0).sqrt()
    sample = torch.cat((scores, residual.unsqueeze(1)), 1)
    before = torch.diag(nn.functional.pad(fitted, (0, 1)))
    vectors = torch.linalg.eigh(before + sample.unsqueeze(2) * sample.unsqueeze(1)).eigenvectors[..., 1:]
    # New scores of the fitted samples are their old ones, U D, times `turned`; what brings these back is a rotation and one factor.
    turned = vectors[:, :count]
    left, stretch, right = torch.linalg.svd(turned.mT * fitted)
    factor = stretch.sum(1) / (fitted.unsqueeze(1) * turned.square()).sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return (sample.unsqueeze(1) @ vectors @ (left @ right)).squeeze(1) * factor.unsqueeze(1)


def _solve(normal: Tensor, products: Tensor) -> Tensor:
    inverse = torch.linalg.pinv(normal, rtol=_LEAST_SHARE, hermitian=True)
    return (inverse @ products.unsqueeze(-1)).squeeze(-1)
