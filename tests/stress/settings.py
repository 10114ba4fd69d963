"""Settings and strategies of generated tests: the same examples at every run, and no limit of time for one of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from ddvi_fast.parity import normals

BAD = (math.nan, math.inf, -math.inf)


def examples(count: int) -> settings:
    """Settings of a test with `count` examples."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=quiet)


@contextlib.contextmanager
def _default(setting: Callable, value: object, usual: object) -> Iterator[None]:
    setting(value)
    try:
        yield
    finally:
        setting(usual)


# Unusual states of torch.
STATES = {
    "float64": lambda: _default(torch.set_default_dtype, torch.float64, torch.float32),
    "meta": lambda: _default(torch.set_default_device, "meta", None),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
AUTOCAST = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}  # which networks and operations follow, and fitted models do not


def _wide(value: Tensor) -> Tensor:
    """The same values with gaps of NaN between the columns."""
    wide = value.new_full((*value.shape[:-1], 2 * value.shape[-1]), torch.nan)
    wide[..., ::2] = value
    return wide[..., ::2]


def _offset(value: Tensor) -> Tensor:
    """The same values after one number of other memory: no vector is aligned."""
    memory = value.new_full((value.numel() + 1,), torch.nan)
    memory[1:] = value.flatten()
    return memory[1:].view(value.shape)


# Ways to hold the same values in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value.contiguous(),
    "gaps": lambda value: _wide(value) if value.dim() else value,
    "transposed": lambda value: value.mT.contiguous().mT if value.dim() > 1 else value,
    "offset": _offset,
    "reversed": lambda value: value.flip(0).contiguous().flip(0) if value.dim() else value,
}


@st.composite
def operands(draw: st.DrawFn, *shape: int) -> Tensor:
    """Normals of a shape times a power of ten from 1e-30 to 1e15, sometimes with numbers that are not finite."""
    value = normals(draw(st.integers(0, 50)), *shape) * draw(st.sampled_from((1.0, 1.0, 1e-30, 1e-3, 1e6, 1e15)))
    for _ in range(draw(st.integers(0, 2)) if value.numel() else 0):
        value.view(-1)[draw(st.integers(0, value.numel() - 1))] = draw(st.sampled_from(BAD))
    return value


def kinds(value: Tensor) -> Tensor:
    """0 for finite numbers, 1 for infinity, 2 for minus infinity, 3 for NaN."""
    value = value.detach().double()
    return value.isposinf() + 2 * value.isneginf() + 3 * value.isnan()
