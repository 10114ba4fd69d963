"""Random numbers and forward noising in Triton: Philox in registers, one pass over the latents.

A program owns the tile of a few rows. Normals are computed where they are used, so that noising reads only `x_0` and writes only `y_t` and
the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.kernels.common import ARCHITECTURES, MODELED, Compilation, cdiv, launch, next_power_of_2, recorded, tile_place, unusable
from ddvi_fast.kernels.rng import draw_index, number_tile, row_noise

KINDS = ("words", "uniform", "normal")

_WIDEST = 64  # most columns of a tile
_TILE = 1024  # elements of a tile
_STEP_ROWS, _STEP_PROGRAMS = 32, 256  # rows that are sorted into steps at a time, and programs that sort


def fill(kind: str, state: Tensor, offset: int, shape: tuple[int, ...], stream: int, planes: int = 1) -> Tensor:
    """Random numbers [planes, *shape] as those of `ddvi_fast.rng`, plane p from stream `stream + p`.

    Args:
        kind: "words" (int64), "uniform" or "normal" (float32).
        state: Seed and first draw index, int64 [2] on the device.
        offset: Number added to the first draw index.
        shape: Shape [.., N, D]; the axes before N are importance samples.
        stream: Stream of the first plane.
        planes: Number of planes (default 1).
    """
    out = torch.empty((planes, *shape), dtype=torch.int64 if kind == "words" else torch.float32, device=state.device)
    rows, width = math.prod(shape[:-1]), shape[-1]
    if out.numel() > 0:
        options = launch_options(width)
        grid = (cdiv(rows, options["ROWS"]), cdiv(width, options["WIDTH"]), planes)
        call = (state, offset, out, rows, width, shape[-2], stream)
        launch(noise_fwd_kernel_fill, grid, *call, KIND=KINDS.index(kind), SAMPLES=rows > shape[-2], **options)
    return out


def add_noise(
    x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor | None, state: Tensor | None, offset: int, rows_per_sample: int
) -> tuple[Tensor, Tensor]:
    """`(signal_t x_0 + deviation_t noise, noise)` for latents [R, D] at 0-based steps `t` [R]; without `noise` that of the rows' draws."""
    out, used = torch.empty_like(x0), torch.empty_like(x0) if noise is None else noise
    rows, width = x0.shape
    if x0.numel() > 0:
        options = launch_options(width)
        grid = (cdiv(rows, options["ROWS"]), cdiv(width, options["WIDTH"]))
        draws = (state, offset, rows_per_sample) if noise is None else (None, 0, rows)
        call = (x0, t, signal, deviation, used, *draws, out, rows, width)
        launch(noise_fwd_kernel, grid, *call, STREAM=rng.NOISE, SAMPLES=rows > rows_per_sample, WHOLE=width == options["WIDTH"] <= 4, **options)
    return out, used


def add_noise_backward(
    upstream: Tensor, x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor, needed: list[bool]
) -> list[Tensor | None]:
    """The gradients to x0, signal, deviation and noise that are `needed`; the tables' sums over rows have one order."""
    rows, width = x0.shape
    tables = needed[1] or needed[2]
    d_x0, d_noise = (torch.empty_like(x0) if need else None for need in (needed[0], needed[3]))
    products = x0.new_empty((2, rows), dtype=torch.float64) if tables else None
    if rows > 0 and (tables or needed[0] or needed[3]):
        options = launch_options(width)
        call = (upstream, x0, t, signal, deviation, noise, d_x0, d_noise, products, rows, width)
        launch(noise_bwd_kernel, (cdiv(rows, options["ROWS"]),), *call, **options)
    d_signal, d_deviation = _by_step(products, t, len(signal)) if tables else (None, None)
    return [d_x0, d_signal if needed[1] else None, d_deviation if needed[2] else None, d_noise]


def unsupported(
    *, x0: Tensor, t: Tensor | None = None, signal: Tensor | None = None, deviation: Tensor | None = None, noise: Tensor | None = None
) -> str | None:
    """The reason why the kernels cannot noise these latents, or None if they can."""
    if t is not None and (t.dtype not in (torch.int64, torch.int32) or t.device != x0.device):
        return f"t: Triton takes int64 or int32 steps on {x0.device}, got {t.dtype} on {t.device}"
    return unusable(noise_fwd_kernel, x0=x0, signal=signal, deviation=deviation, noise=noise)


def launch_options(width: int) -> dict[str, int]:
    """Rows and columns of a program's tile, and its warps."""
    block = min(next_power_of_2(max(1, width)), _WIDEST)
    return {"ROWS": 512 if block <= 4 else _TILE // block, "WIDTH": block, "num_warps": 4}


def compilations() -> Iterator[Compilation]:
    """Latents of two dimensions on every architecture and of many on one, noise given and drawn, one sample and several."""
    state, t = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in (2, 128))
    table = torch.empty(100, device="meta")
    for width, architectures in ((2, ARCHITECTURES), (16, MODELED)):
        x0, shape = torch.empty(128, width, device="meta"), (2, 64, width) if width == 16 else (128, width)
        for kind in KINDS if width == 16 else ("normal",):
            yield from recorded(f"{kind}, D {width}", fill, kind, state, 0, shape, rng.NOISE, architectures=architectures)
        latents = (x0, t, table, table)
        yield from recorded(f"drawn, D {width}", add_noise, *latents, None, state, 0, shape[-2], architectures=architectures)
        yield from recorded(f"given, D {width}", add_noise, *latents, x0, None, 0, shape[-2], architectures=architectures)
        yield from recorded(f"D {width}", add_noise_backward, x0, *latents, x0, [True] * 4, architectures=architectures)


def _by_step(products: Tensor, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Sums [steps] of both rows of `products` [2, R] over the rows of each step, in float64: terms of a table's gradient cancel later."""
    rows = len(t)
    blocks = cdiv(rows, _STEP_ROWS)
    share = max(1, cdiv(blocks, _STEP_PROGRAMS))
    partial = products.new_empty((cdiv(blocks, share), 2, steps))
    if rows > 0:
        block = min(next_power_of_2(steps), 64)
        grid = (len(partial), cdiv(steps, block))
        launch(noise_bwd_kernel_step_sums, grid, products, t, partial, rows, steps, share, ROWS=_STEP_ROWS, STEPS=block, num_warps=4)
    return partial[:, 0].sum(0).float(), partial[:, 1].sum(0).float()  # apart, as an operator's results share no memory


@triton.jit
def _index(state, offset, row, rows_per_sample, SAMPLES: tl.constexpr):
    """Draw indices of `row`, without the division by the rows of a sample where there is one sample."""
    if SAMPLES:
        return draw_index(state, offset, row, rows_per_sample)
    else:
        return tl.load(state + 1) + offset + row


@triton.jit
def noise_fwd_kernel_fill(
    state,  # [2]
    offset,
    out,  # [planes, R, D]
    rows, width, rows_per_sample, stream,
    KIND: tl.constexpr, SAMPLES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    plane = tl.program_id(2)
    index = _index(state, offset, first + tl.arange(0, ROWS), rows_per_sample, SAMPLES)
    # Only tiles of whole Philox blocks have neighbors along their rows.
    value = number_tile(index, tl.program_id(1) * ((WIDTH + 3) // 4), stream + plane, tl.load(state), KIND, ROWS, WIDTH)
    place, mask = tile_place(first, tl.program_id(1) * WIDTH, rows, width, ROWS, WIDTH)
    tl.store(out + (plane * tl.cast(rows, tl.int64) + first) * width + place, value, mask=mask)


@triton.jit
def noise_fwd_kernel(
    x0,  # [R, D]
    t,  # [R]
    signal, deviation,  # [T]
    noise,  # [R, D]
    state,  # [2] or None
    offset, rows_per_sample,
    out,  # [R, D]
    rows, width,
    STREAM: tl.constexpr, SAMPLES: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    step = tl.load(t + row, mask=row < rows, other=0)
    if WHOLE:  # rows follow each other without a gap: a thread takes whole ones, four numbers at a time
        place = first * WIDTH + tl.arange(0, ROWS * WIDTH)
        mask = place < tl.cast(rows, tl.int64) * WIDTH
    else:
        within, mask = tile_place(first, tl.program_id(1) * WIDTH, rows, width, ROWS, WIDTH)
        place = first * width + within
    clean = tl.load(x0 + place, mask=mask, other=0.0)
    if state is None:
        added = tl.load(noise + place, mask=mask, other=0.0)
    else:
        index = _index(state, offset, row, rows_per_sample, SAMPLES)
        if WHOLE:
            added = tl.reshape(row_noise(index, STREAM, tl.load(state), WIDTH, WIDTH), (ROWS * WIDTH,))
        else:
            added = number_tile(index, tl.program_id(1) * ((WIDTH + 3) // 4), STREAM, tl.load(state), 2, ROWS, WIDTH)
        tl.store(noise + place, added, mask=mask)
    of_signal, of_noise = tl.load(signal + step)[:, None], tl.load(deviation + step)[:, None]
    if WHOLE:
        noised = tl.reshape(of_signal * tl.reshape(clean, (ROWS, WIDTH)) + of_noise * tl.reshape(added, (ROWS, WIDTH)), (ROWS * WIDTH,))
    else:
        noised = of_signal * clean + of_noise * added
    tl.store(out + place, noised, mask=mask)


@triton.jit
def noise_bwd_kernel(
    upstream, x0,  # [R, D]
    t,  # [R]
    signal, deviation,  # [T]
    noise,  # [R, D]
    d_x0, d_noise,  # [R, D] or None
    products,  # [2, R] or None
    rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients to latents and noise, and each row's inner products of the upstream gradient with both."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    step = tl.load(t + row, mask=row < rows, other=0)
    by_signal = tl.zeros((ROWS, WIDTH), tl.float32)
    by_deviation = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, width, WIDTH):
        place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
        given = tl.load(upstream + first * width + place, mask=mask, other=0.0)
        if d_x0 is not None:
            tl.store(d_x0 + first * width + place, given * tl.load(signal + step)[:, None], mask=mask)
        if d_noise is not None:
            tl.store(d_noise + first * width + place, given * tl.load(deviation + step)[:, None], mask=mask)
        if products is not None:
            by_signal += given * tl.load(x0 + first * width + place, mask=mask, other=0.0)
            by_deviation += given * tl.load(noise + first * width + place, mask=mask, other=0.0)
    if products is not None:
        tl.store(products + row, tl.sum(by_signal.to(tl.float64), axis=1), mask=row < rows)
        tl.store(products + rows + row, tl.sum(by_deviation.to(tl.float64), axis=1), mask=row < rows)


@triton.jit
def noise_bwd_kernel_step_sums(
    products,  # [2, R]
    t,  # [R]
    partial,  # [programs, 2, T]
    rows, steps, share, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Sum a share of the rows by step: [2, steps] a program."""
    wanted = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    by_signal = tl.zeros((ROWS, STEPS), tl.float64)
    by_deviation = tl.zeros((ROWS, STEPS), tl.float64)
    for block in range(share):
        row = (tl.program_id(0).to(tl.int64) * share + block) * ROWS + tl.arange(0, ROWS)
        mask = row < rows
        here = tl.load(t + row, mask=mask, other=-1)[:, None] == wanted[None, :]
        by_signal += tl.where(here, tl.load(products + row, mask=mask, other=0.0)[:, None], 0.0)
        by_deviation += tl.where(here, tl.load(products + rows + row, mask=mask, other=0.0)[:, None], 0.0)
    place = partial + tl.program_id(0) * 2 * steps + wanted
    tl.store(place, tl.sum(by_signal, axis=0), mask=wanted < steps)
    tl.store(place + steps, tl.sum(by_deviation, axis=0), mask=wanted < steps)
