"""Ridge regression with the penalty of the least leave-one-out error, for the Gaussian from which a fit to few simulations starts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PENALTIES = torch.logspace(-4, 6, 31, dtype=torch.float64, device="cpu")  # in units of the squared singular values of one standardized row
_MOST = 0.999  # largest leverage of a row
_LEAST = 1e-12  # least mean squared error


class Ridge(NamedTuple):
    """Linear map `matrix x + bias`, float32 [D, K] and [D], and the logarithm of its mean squared leave-one-out error [D]."""

    matrix: Tensor
    bias: Tensor
    log_error: Tensor

    def whitened(self, y: Tensor, x: Tensor) -> Tensor:
        """Residuals [n, D] of `y` at features `x`, in units of their standard deviations."""
        return (y - x @ self.matrix.T - self.bias) * torch.exp(-0.5 * self.log_error)


def ridge(x: Tensor, y: Tensor) -> Ridge:
    """Regress `y` [n, D] on `x` [n, K]; each column of `y` has the penalty that it needs.

    The leave-one-out residual of a row is its residual over one less its leverage, so that one singular value decomposition gives the errors of
    all penalties.

    Args:
        x: Features [n, K].
        y: Targets [n, D].

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> found = ridge(x, x @ torch.tensor([[1.0], [2.0], [0.0]]) + 0.5)
        >>> torch.allclose(found.matrix, torch.tensor([[1.0, 2.0, 0.0]]), atol=1e-3), round(float(found.bias), 3)
        (True, 0.5)
    """
    x, y = x.double(), y.double()
    center, mean = x.mean(0), y.mean(0)
    left, singular, right = torch.linalg.svd(x - center, full_matrices=False)
    targets, squares = left.T @ (y - mean), singular.square()
    shares = squares / (squares + _PENALTIES.to(x.device).unsqueeze(1))  # [penalties, rank]
    errors = torch.stack([_left_out(left, share, targets, y - mean) for share in shares])
    best = errors.argmin(0)
    kept = shares[best].T / torch.where(singular > 0, singular, 1.0).unsqueeze(1)
    matrix = (right.T @ (kept * targets)).T
    return Ridge(matrix.float(), (mean - matrix @ center).float(), errors.gather(0, best.unsqueeze(0))[0].clamp(min=_LEAST).log().float())


def _left_out(left: Tensor, share: Tensor, targets: Tensor, y: Tensor) -> Tensor:
    """Mean squared leave-one-out error [D] of one penalty."""
    leverage = (left.square() @ share + 1 / len(left)).clamp(max=_MOST)
    return ((y - left @ (share.unsqueeze(1) * targets)) / (1 - leverage).unsqueeze(1)).square().mean(0)
