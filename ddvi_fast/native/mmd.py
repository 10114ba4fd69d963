"""Maximum mean discrepancy in C++: tiles of products that never leave cache; memory is linear in the rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ddvi_fast.native import loader

_MOST_WIDTHS = 64


def unsupported(x: Tensor, y: Tensor, sigmas: Tensor) -> str | None:
    """Why the kernel cannot compute this discrepancy, or None."""
    reason = loader.unusable(x=x, y=y, sigmas=sigmas)
    if reason is None and sigmas.requires_grad and torch.is_grad_enabled():
        return "sigmas: the C++ discrepancy has no gradient to them"
    if reason is None and len(sigmas) > _MOST_WIDTHS:
        return f"sigmas: the C++ discrepancy takes up to {_MOST_WIDTHS} widths, got {len(sigmas)}"
    return reason


def mmd(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """`reference.mmd.mmd`: square root of the biased estimate between `x` [N, P] and `y` [M, P]."""
    loader.require_usable(unsupported(x, y, sigmas))
    squared = _Squared.apply(x, y, sigmas)
    # Rounding can take a discrepancy of nothing below zero, where the root has no value and at zero no gradient.
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


class _Squared(Function):
    """The squared discrepancy: sums in float64, as three nearly equal ones cancel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
        x, y, sigmas = (value.detach().contiguous() for value in (x, y, sigmas))
        ctx.save_for_backward(x, y, sigmas)
        n, m = len(x), len(y)
        squared = _sum(x, x, sigmas) / (n * n) + _sum(y, y, sigmas) / (m * m) - 2 * _sum(x, y, sigmas) / (n * m)
        return x.new_tensor(squared)

    @staticmethod
    @loader.first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, sigmas = ctx.saved_tensors
        return (
            _gradient(x, y, sigmas) * upstream if ctx.needs_input_grad[0] else None,
            _gradient(y, x, sigmas) * upstream if ctx.needs_input_grad[1] else None,
            None,
        )


def _gradient(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """Of the squared discrepancy by its first set."""
    out = torch.zeros_like(x)
    _add_gradient(x, x, sigmas, 2 / (len(x) * len(x)), out)
    _add_gradient(x, y, sigmas, -2 / (len(x) * len(y)), out)
    return out


def _sum(x: Tensor, y: Tensor, sigmas: Tensor) -> float:
    return loader.library().ddvi_mmd_sum(*_operands(x, y, sigmas))


def _add_gradient(x: Tensor, y: Tensor, sigmas: Tensor, factor: float, out: Tensor) -> None:
    loader.library().ddvi_mmd_gradient(*_operands(x, y, sigmas), loader.number(factor), *loader.pointers(out))


def _operands(x: Tensor, y: Tensor, sigmas: Tensor) -> list:
    sizes = loader.integers(len(x), len(y), x.shape[1], len(sigmas), torch.get_num_threads())
    addresses = loader.pointers(x, y, sigmas)
    return [addresses[0], sizes[0], addresses[1], sizes[1], sizes[2], addresses[2], *sizes[3:]]
