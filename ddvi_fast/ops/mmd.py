"""Maximum mean discrepancy between two sets of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks


def mmd(x: Tensor, y: Tensor, sigmas: Sequence[float] | Tensor) -> Tensor:
    """Square root of the biased estimate of the squared MMD (Gretton et al. 2012), kernel `sum_s exp(-|x - y|^2 / (2 s))`.

    Args:
        x: [N, P].
        y: [M, P].
        sigmas: the widths `s`; squared lengths.

    Returns:
        a scalar.

    Example:
        >>> mmd(torch.zeros(2, 3), torch.zeros(4, 3), [1.0]).item()
        0.0
    """
    _checks.tensor(x, "x", (None, None))
    _checks.tensor(y, "y", (None, x.shape[1]))
    _checks.require(min(len(x), len(y)) >= 1, "x, y", "at least one row each", f"{len(x)} and {len(y)} rows")
    widths = torch.as_tensor(sigmas, dtype=x.dtype, device=x.device)
    return _backend.operation("mmd", x, y, widths).mmd(x, y, widths)
