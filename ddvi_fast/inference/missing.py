"""Missing entries of data, which are NaN: hidden from simulations at random, and as inputs of networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.rng import Draws

MISSING = ("random", "simulated")
_COMPLETE = 0.25  # share of the simulations of which nothing is hidden


def chosen(missing: str | None) -> str | None:
    """Check the argument `missing` of `fit_posterior`."""
    return missing if missing is None else _checks.choice(missing, MISSING, "missing")


def hidden(x: Tensor, draws: Draws) -> Tensor:
    """Replace entries of data `x` [n, ...] by NaN: none in a quarter of the rows, and a uniform random share of each other row."""
    numbers = rng.uniform(draws.lane("missing"), (len(x), 1 + x[0].numel()), rng.PIXELS, device=x.device)
    share = (numbers[:, :1] - _COMPLETE) / (1 - _COMPLETE)
    return x.masked_fill((numbers[:, 1:] < share).reshape(x.shape), torch.nan)


def require_usable(x: Tensor, argument: str, allowed: bool) -> Tensor:
    """Check that data are finite, or NaN where entries may be missing, and return them."""
    gone = _checks.valued(x, argument).isnan()
    hint = f"for missing entries: fit_posterior(.., missing={'random' if argument == 'x' else 'simulated'!r})" if gone.any() else ""
    _checks.finite(x.masked_fill(gone, 0.0) if allowed else x, argument, hint)
    return x


def filled(x: Tensor) -> Tensor:
    """Replace missing entries of data `x` [n, ...] by values of the same column in other rows, or by 0 if there are none."""
    missing = x.isnan()
    if not missing.any():
        return x
    columns, gone = x.flatten(1), missing.flatten(1)
    order = gone.long().argsort(stable=True, dim=0)  # rows with a value first
    count = (~gone).sum(0).clamp(min=1)
    places = order.gather(0, torch.arange(len(x), device=x.device).unsqueeze(1) % count)
    return torch.where(gone, columns.gather(0, places).nan_to_num(nan=0.0), columns).reshape(x.shape)


def with_mask(x: Tensor) -> Tensor:
    """Return data [n, C, ...] as [n, 2 C, ...]: the values, 0 where one is missing, and 1 where one is missing."""
    missing = x.isnan()
    return torch.cat((x.masked_fill(missing, 0.0), missing.to(x)), 1)
