"""Uniform integers in Triton, such as timesteps and classes, in one launch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.kernels.common import Compilation, cdiv, launch, recorded
from ddvi_fast.kernels.rng import draw_index, philox, to_uniform

_ROWS = 1024


def integers(state: Tensor, offset: int, shape: tuple[int, ...], stream: int, high: int) -> Tensor:
    """Uniform integers below `high`, int64 [*shape], as `ddvi_fast.rng.integers` draws them; arguments as in `noise.fill`."""
    out, rows = torch.empty(shape, dtype=torch.int64, device=state.device), math.prod(shape)
    if rows > 0:
        launch(integers_fwd_kernel, (cdiv(rows, _ROWS),), state, offset, out, rows, shape[-1], stream, high, ROWS=_ROWS, num_warps=4)
    return out


def compilations() -> Iterator[Compilation]:
    """Timesteps of a batch."""
    state = torch.empty(2, dtype=torch.int64, device="meta")
    yield from recorded("128 rows", integers, state, 0, (128,), rng.TIME, 40)


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "stream", "high"])
def integers_fwd_kernel(state, offset, out, rows, rows_per_sample, stream, high, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word, _, _, _ = philox(draw_index(state, offset, row, rows_per_sample), 0, stream, tl.load(state))
    value = (to_uniform(word) * high).to(tl.int64)
    tl.store(out + row, tl.minimum(value, high - 1), row < rows)
