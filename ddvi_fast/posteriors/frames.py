"""Updates of a Gaussian frame with the gradient of a log-density, towards the best Gaussian approximation (docs/method.md, section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast.precision import without_autocast

NARROWER = 4.0  # largest factor by which an update divides or multiplies a variance
_POINTS = 16384  # points at which gradients are computed at a time


class Frame(NamedTuple):
    """Gaussians `N(mean, factor factor^T)`, and the map `u = mean + factor v` of their coordinates.

    Attributes:
        mean: Means [.., N, D].
        factor: Lower triangular factors [.., N, D, D] with a positive diagonal.
    """

    mean: Tensor
    factor: Tensor

    def place(self, v: Tensor) -> Tensor:
        """Map `v` [.., N, D], with the leading dimensions of the means last among its own, out of the frame."""
        with without_autocast(v.device):
            return self.mean + torch.einsum("...ij,...j->...i", self.factor, v)

    def undo(self, u: Tensor) -> Tensor:
        """Undo `place`."""
        columns = (u - self.mean).reshape(-1, *self.mean.shape).movedim(0, -1)  # [.., N, D, K]
        return torch.linalg.solve_triangular(self.factor, columns, upper=False).movedim(-1, 0).view(u.shape)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Map gradients [.., N, D] for `u` to those for `v`."""
        with without_autocast(gradient.device):
            return torch.einsum("...ij,...i->...j", self.factor, gradient)

    def log_det(self) -> Tensor:
        """Compute the log-determinants [.., N] of `place`."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@torch.no_grad()
def updated(mean: Tensor, scale: Tensor, gradient: Callable[[slice], Callable[[Tensor], Tensor]], number: int) -> Frame:
    """Update the frames of diagonal Gaussians with the gradient of a log-density.

    The Gaussian that minimizes `KL(q || p)` has `E_q[grad log p] = 0` and the precision `-E_q[hessian of log p]` (Opper and Archambeau 2009).
    An update is the fixed-point step of both, in the coordinates of the frame, with expectations over the 2 D points at a distance of
    `sqrt(D)` along the axes of the frame. That rule is exact for polynomials of degree 3, so that one update finds a Gaussian posterior. By
    Stein's identity the second derivatives are differences of gradients.

    An update changes the variance in a direction by a factor of `NARROWER` at most, and moves the mean at most as far as the points. A row
    with a gradient that is not finite keeps its frame.

    Args:
        mean, scale: Means and standard deviations [.., N, D] of the Gaussians.
        gradient: Function of a range of rows that returns the function of points [K, .., n, D] in these rows that returns the gradients there.
        number: Number of updates (int).

    Returns:
        The frames, without gradients.

    Example:
        >>> precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
        >>> frame = updated(torch.ones(1, 2), torch.ones(1, 2), lambda rows: lambda u: -u @ precision, 1)
        >>> torch.allclose(frame.factor @ frame.factor.mT, precision.inverse(), atol=1e-5)
        True
    """
    frame, rows_in_all = Frame(mean, torch.diag_embed(scale)), mean.shape[-2]
    size = max(1, _POINTS * rows_in_all // max(1, 2 * mean.numel()))
    parts = []
    for first in range(0, rows_in_all, size):
        rows = slice(first, first + size)
        part, of_rows = Frame(frame.mean[..., rows, :], frame.factor[..., rows, :, :]), gradient(rows)
        with without_autocast(mean.device):
            for _ in range(number):
                part = _update(part, of_rows)
        parts.append(part)
    return Frame(torch.cat([part.mean for part in parts], -2), torch.cat([part.factor for part in parts], -3)) if parts else frame


def _update(frame: Frame, gradient: Callable[[Tensor], Tensor]) -> Frame:
    """One update of frames of n rows, with the function of points [K, .., n, D] that returns gradients."""
    dim = frame.mean.shape[-1]
    reach = math.sqrt(dim)
    axes = reach * torch.eye(dim, dtype=frame.mean.dtype, device=frame.mean.device)
    points = torch.cat((axes, -axes)).view(2 * dim, *[1] * (frame.mean.dim() - 1), dim).expand(2 * dim, *frame.mean.shape)
    forces = frame.pull_back(gradient(frame.place(points)))  # [2 D, .., n, D]
    usable = forces.isfinite().all(-1).all(0)
    forces = torch.where(usable.unsqueeze(-1), forces, -points)  # those of the frame's own Gaussian, which changes nothing
    precision = (forces[dim:] - forces[:dim]).movedim(0, -2) / (2 * reach)  # [.., n, D, D]
    eigenvalues, vectors = torch.linalg.eigh(0.5 * (precision + precision.mT))
    eigenvalues = eigenvalues.clamp(1 / NARROWER, NARROWER)
    along = (vectors.mT @ forces.mean(0).unsqueeze(-1)).squeeze(-1) / eigenvalues
    step = (vectors @ (along * (reach / along.norm(dim=-1, keepdim=True).clamp(min=reach))).unsqueeze(-1)).squeeze(-1)
    return Frame(frame.place(step), _triangular(frame.factor @ (vectors * eigenvalues.rsqrt().unsqueeze(-2))))


def _triangular(root: Tensor) -> Tensor:
    """The lower triangular factors with a positive diagonal of the matrices `root root^T` [.., D, D]."""
    upper = torch.linalg.qr(root.mT, mode="r").R
    diagonal = upper.diagonal(dim1=-2, dim2=-1)
    return (upper * torch.where(diagonal < 0, -1.0, 1.0).to(upper).unsqueeze(-1)).mT.contiguous()
