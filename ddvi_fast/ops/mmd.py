"""Maximum mean discrepancy between two sets of rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, positive_tensor
from ddvi_fast.precision import full_precision, without_autocast
from ddvi_fast.reference import mmd as reference


def mmd(x: Tensor, y: Tensor, sigmas: Sequence[float] | Tensor) -> Tensor:
    """Square root of the biased estimate of the squared MMD (Gretton et al. 2012), with kernel `sum_s exp(-|x - y|^2 / (2 s))`.

    Args:
        x: First set, [N, P], N at least 1.
        y: Second set, [M, P], M at least 1.
        sigmas: Squared widths `s` of the kernels, positive, [S].

    Returns:
        The discrepancy, a scalar.

    Raises:
        InputError: The shapes do not fit, a set is empty, or a width is not positive.

    Example:
        >>> import torch
        >>> mmd(torch.zeros(2, 3), torch.zeros(4, 3), [1.0]).item()
        0.0
    """
    _checks.tensor(x, "x", (None, None))
    _checks.tensor(y, "y", (None, x.shape[1]))
    rows = x.shape[0], y.shape[0]
    if min(rows) < 1:
        _checks.fail("x, y", "at least one row each", f"{rows[0]} and {rows[1]} rows")
    _checks.same_dtype("y", y, x)
    x, y = full_precision(x, y)
    widths = positive_tensor(sigmas, "sigmas", x)
    backend = _backend.choose("mmd", x.device, x=x, y=y, constants={"sigmas": widths})
    if backend == "reference":
        with without_autocast(x.device):
            return reference.mmd(x, y, widths)
    return _mmd(x, y, widths, backend)


def _compute(x, y, sigmas, backend):
    return _backend.implementation(backend, "mmd").forward(x, y, sigmas)


def _fake(x, y, sigmas, backend):
    return x.new_empty(())


def _compute_backward(x, y, sigmas, value, upstream, needed, backend):
    return _backend.implementation(backend, "mmd").backward(x, y, sigmas, value, upstream, needed)


_mmd = Operator(
    "mmd(Tensor x, Tensor y, Tensor sigmas, str backend) -> Tensor", _compute, _fake, _compute_backward, gradients_of=("x", "y"), saved=(0,)
)
