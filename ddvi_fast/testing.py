"""Comparison of numerical results, for tests and benchmarks.

The tolerance is an error budget: a backend may be at most twice as far from a float64 reference as plain PyTorch in the same dtype, plus
a small floor for the case where PyTorch happens to be exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.rng import Draws

_SHOWN = 3


def assert_close(got: Tensor, expected: Tensor, rtol: float, atol: float = 0.0, name: str = "value") -> None:
    """Fail unless `|got - expected| <= atol + rtol |expected|` everywhere; NaN equals nothing.

    Args:
        got: Computed values.
        expected: Expected values of the same shape.
        rtol: Relative tolerance.
        atol: Absolute tolerance (default 0).
        name: Name of the values in the message.

    Raises:
        AssertionError: The values differ; the message gives the number of elements, and positions and errors of the worst.
    """
    assert got.shape == expected.shape, f"{name}: shape {list(got.shape)}, expected {list(expected.shape)}"
    exact = expected.detach().double()
    _fail_beyond(got.detach().double(), exact, atol + rtol * exact.abs(), name)


def assert_within_budget(got: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 2.0, floor: float = 1e-6, name: str = "value") -> None:
    """Fail if `got` is further from `exact` than `factor` times the largest error of `plain`, plus a floor.

    Args:
        got: Result of the backend.
        plain: Result of plain PyTorch in the dtype of `got`.
        exact: Result in float64.
        factor: Allowed multiple of the error of `plain` (default 2).
        floor: Error that is always allowed, relative to the largest value of `exact` (default 1e-6).
        name: Name of the values in the message.

    Raises:
        AssertionError: The error is larger, or the references are not finite.

    Example:
        >>> exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> assert_within_budget(exact.float(), exact.float(), exact)
    """
    assert got.shape == plain.shape == exact.shape, f"{name}: shapes {list(got.shape)}, {list(plain.shape)} and {list(exact.shape)} differ"
    if exact.numel() == 0:
        return
    truth = exact.detach().double()
    budget = factor * (plain.detach().double() - truth).abs().max() + floor * truth.abs().max()
    assert torch.isfinite(budget), f"{name}: the references are not finite, so nothing can be compared with them"
    _fail_beyond(got.detach().double(), truth, budget.expand_as(truth), name)


def upstream_gradient(like: Tensor, seed: int = 0) -> Tensor:
    """Standard normals of the shape and dtype of `like`: a constant upstream gradient would hide mistakes."""
    flat = rng.normal(Draws(seed), (1, like.numel()), rng.UPSTREAM, device=like.device, dtype=like.dtype)
    return flat.reshape(like.shape)


def gradients(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 0) -> tuple[Tensor, ...]:
    """The output of `function`, followed by the gradient of every input under a random upstream gradient."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, upstream_gradient(output, seed))


def strided(value: Tensor) -> Tensor:
    """The same values in memory that is not contiguous: every second element of a wider tensor filled with NaN."""
    wide = value.new_full((*value.shape[:-1], 2 * value.shape[-1]), torch.nan)
    wide[..., ::2] = value
    return wide[..., ::2]


def _fail_beyond(got: Tensor, expected: Tensor, allowed: Tensor, name: str) -> None:
    difference = torch.where(got == expected, 0.0, (got - expected).abs())
    bad = ~(difference <= allowed)
    if not bad.any():
        return
    # A NaN has no size; it counts as the worst.
    excess = torch.where(bad, torch.nan_to_num(difference - allowed, nan=torch.inf), -torch.inf).flatten()
    lines = [f"{name}: {int(bad.sum())} of {bad.numel()} elements differ; the worst:"]
    for flat in excess.topk(min(_SHOWN, int(bad.sum()))).indices:
        where = tuple(int(i) for i in torch.unravel_index(flat, bad.shape))
        off = f"off by {difference[where]:.3g}, allowed {allowed[where]:.3g}"
        lines.append(f"  at {where}: got {got[where]:.9g}, expected {expected[where]:.9g}, {off}")
    raise AssertionError("\n".join(lines))
