"""Scores of samples with many missing calls: least squares on the calls that there are."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast.genomes.standardise import StandardisedRows

# A direction that the calls determine worse than this, relative to the best, is left at 0.
_LEAST_SHARE = 1e-6


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


def _solve(normal: Tensor, products: Tensor) -> Tensor:
    inverse = torch.linalg.pinv(normal, rtol=_LEAST_SHARE, hermitian=True)
    return (inverse @ products.unsqueeze(-1)).squeeze(-1)
