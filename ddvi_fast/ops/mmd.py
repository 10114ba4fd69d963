"""Maximum mean discrepancy between two sets of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, contiguous, filled, kept, numbers, shapes_of
from ddvi_fast.precision import full_precision, without_autocast
from ddvi_fast.reference import mmd as reference


def mmd(x: Tensor, y: Tensor, sigmas: Sequence[float] | Tensor) -> Tensor:
    """Square root of the biased estimate of the squared MMD (Gretton et al. 2012), kernel `sum_s exp(-|x - y|^2 / (2 s))`.

    Args:
        x: [N, P].
        y: [M, P].
        sigmas: the widths `s`; squared lengths.

    Returns:
        a scalar.

    Example:
        >>> import torch
        >>> mmd(torch.zeros(2, 3), torch.zeros(4, 3), [1.0]).item()
        0.0
    """
    _checks.tensor(x, "x", (None, None))
    _checks.tensor(y, "y", (None, x.shape[1]))
    _checks.require(min(len(x), len(y)) >= 1, "x, y", "at least one row each", f"{len(x)} and {len(y)} rows")
    x, y = full_precision(x, y)
    widths = numbers(sigmas, "sigmas", x)
    backend = _backend.choose("mmd", x.device, x=x, y=y, constants={"sigmas": widths})
    if backend == "reference":
        with without_autocast(x.device):
            return reference.mmd(x, y, widths)
    return _mmd(x, y, widths, backend)


def _compute(x, y, sigmas, backend):
    return _backend.room(backend, "mmd").forward(*contiguous(x, y, sigmas))


def _fake(x, y, sigmas, backend):
    return x.new_empty(())


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *operands, ctx.backend = inputs
    ctx.save_for_backward(*operands, output)


def _gradient(ctx: Any, upstream: Tensor | None) -> tuple:
    if upstream is None:
        return (None,) * 4
    needed = list(ctx.needs_input_grad[:2])
    return *kept(_mmd_backward(*ctx.saved_tensors, upstream, needed, ctx.backend), needed), None, None


def _compute_backward(x, y, sigmas, value, upstream, needed, backend):
    return filled(_backend.room(backend, "mmd").backward(*contiguous(x, y, sigmas, value, upstream), needed), x)


def _fake_backward(x, y, sigmas, value, upstream, needed, backend):
    return shapes_of(needed, (x, y), x)


_OPERANDS = "Tensor x, Tensor y, Tensor sigmas"
_mmd = Operator(f"mmd({_OPERANDS}, str backend) -> Tensor", _compute, _fake)
_mmd_backward = Operator(
    f"mmd_backward({_OPERANDS}, Tensor value, Tensor upstream, bool[] needed, str backend) -> Tensor[]", _compute_backward, _fake_backward
)
_mmd.differentiate(_setup, _gradient)
_mmd_backward.first_derivative_only()
