"""Reductions of the bound in Triton: log-likelihoods, Gaussian terms and the log-mean-exp, one pass over the data each way.

A warp owns rows of its own and goes along them in blocks of 16 bytes a lane, so any width runs in fixed registers and warps exchange nothing.
Lanes collect terms in float32 and are added in float64: the sum over an image's pixels cancels in part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import ARCHITECTURES, MODELED, Compilation, cdiv, launch, next_power_of_2, recorded, tile_place, unusable

KINDS = ("bernoulli", "gaussian", "binomial", "gaussian_kl", "gaussian_log_prob")

# Layouts of an operand against the rows of the result.
_ABSENT, _NUMBER, _FULL, _PERIODIC = range(4)

_TILE, _BLOCK = 1024, 128  # elements and columns that a program of four warps holds at a time


def forward(kind: str, operands: list[Tensor], shape: list[int], total: float) -> Tensor:
    """Sums over the last axis, in nats: float32 [shape[:-1]].

    Args:
        kind: One of `KINDS`; their operands are (logits, x), (mean, x, scale), (logits, counts), (mean, log_var) and (z, mean, log_var).
        operands: Contiguous tensors; each has the last axes of `shape` and repeats over those it lacks, or is a single number.
        shape: Shape of the broadcast operands.
        total: Number of trials of the binomial; the other kinds do not read it.
    """
    out = operands[0].new_empty(shape[:-1])
    rows, width = out.numel(), shape[-1]
    if rows > 0:
        options = launch_options(width)
        call = (*_described(operands, shape), out, rows, width, *_trials(kind, total))
        launch(elbo_fwd_kernel, (cdiv(rows, options["ROWS"]),), *call, KIND=KINDS.index(kind), **options)
    return out


def backward(kind: str, operands: list[Tensor], shape: list[int], total: float, upstream: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """Gradients of the full `shape` to the operands that need one, from `upstream` [shape[:-1]]; the binomial's counts have none."""
    gradients = [operands[0].new_empty(shape) if need else None for need in needed]
    rows, width = upstream.numel(), shape[-1]
    if rows > 0 and width > 0 and any(needed):
        options = launch_options(width)
        grid = (cdiv(rows, options["ROWS"]), cdiv(width, options["WIDTH"]))
        padded = (*gradients, *[None] * (3 - len(gradients)))
        call = (*_described(operands, shape), upstream, *padded, rows, width, float(total))
        launch(elbo_bwd_kernel, grid, *call, KIND=KINDS.index(kind), **options)
    return gradients


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """`log mean exp` of every row: [R, K] -> [R]."""
    rows, width = log_weights.shape
    out = log_weights.new_empty(rows)
    if rows > 0:
        options = launch_options(width)
        launch(elbo_fwd_kernel_log_mean_exp, (cdiv(rows, options["ROWS"]),), log_weights, out, rows, width, **options)
    return out


def log_mean_exp_backward(log_weights: Tensor, out: Tensor, upstream: Tensor) -> Tensor:
    """`upstream` [R] times the normalized weights: [R, K]."""
    rows, width = log_weights.shape
    gradient = torch.empty_like(log_weights)
    if rows > 0:
        options = launch_options(width)
        call = (log_weights, out, upstream, gradient, rows, width)
        launch(elbo_bwd_kernel_log_mean_exp, (cdiv(rows, options["ROWS"]),), *call, **options)
    return gradient


def unsupported(*, counts: Tensor | None = None, **operands: Tensor | None) -> str | None:
    """The reason why the kernels cannot take these operands, or None if they can; `counts` are those of a binomial."""
    if counts is not None and counts.requires_grad and torch.is_grad_enabled():
        return "counts: the Triton likelihood has no gradient to them"
    return unusable(elbo_fwd_kernel, counts=counts, **operands)


def launch_options(width: int) -> dict[str, int]:
    """Rows and columns of a program's tile, and its warps: whole rows while they are short."""
    block = min(next_power_of_2(max(1, width)), _BLOCK)
    return {"ROWS": _TILE // block, "WIDTH": block, "num_warps": 4}


def compilations() -> Iterator[Compilation]:
    """Every kind, for rows of an image or a latent, with every layout of operands; one kind on every architecture."""
    for kind in KINDS:
        width, architectures = 2 if kind in _OF_LATENTS else 784, ARCHITECTURES if kind == "bernoulli" else MODELED
        full, repeated = torch.empty(128, width, device="meta"), torch.empty(16, width, device="meta")
        third = {"gaussian": [full.new_empty(1)], "gaussian_log_prob": [full]}.get(kind, [])
        call = (kind, [full, repeated, *third], [128, width], 2.0)
        yield from recorded(f"{kind}, width {width}", forward, *call, architectures=architectures)
        upstream, needed = full.new_empty(128), [True] * (2 + len(third))
        yield from recorded(f"{kind}, width {width}", backward, *call, upstream, needed, architectures=architectures)
    for width in (8, 5000):
        weights, rows = torch.empty(128, width, device="meta"), torch.empty(128, device="meta")
        yield from recorded(f"width {width}", log_mean_exp, weights, architectures=MODELED)
        yield from recorded(f"width {width}", log_mean_exp_backward, weights, rows, rows, architectures=MODELED)


_OF_LATENTS = ("gaussian_kl", "gaussian_log_prob")


def _described(operands: list[Tensor], shape: list[int]) -> list[Any]:
    """The three operands of a kernel, the rows after which they repeat, and their layouts."""
    rows = math.prod(shape[:-1])
    periods, layouts = [], []
    for value in operands:
        single = value.numel() == 1 and math.prod(shape) != 1
        periods.append(1 if single else max(1, math.prod(value.shape[:-1])))
        layouts.append(_NUMBER if single else _FULL if periods[-1] == rows else _PERIODIC)
    missing = 3 - len(operands)
    return [*operands, *[None] * missing, *periods, *[1] * missing, *layouts, *[_ABSENT] * missing]


def _trials(kind: str, total: float) -> tuple[float, float]:
    """`total` and the logarithm of its factorial."""
    return (float(total), math.lgamma(total + 1)) if kind == "binomial" else (0.0, 0.0)


@triton.jit
def softplus(x):
    """`log(1 + exp(x))`, accurate where it is tiny: `log(1 + s)` is `s` times a polynomial, fitted for the least relative error in `[0, 1]`."""
    small = tl.exp(-tl.abs(x))
    series = small * -0.0032439046 + 0.019850919
    series = series * small - 0.05695851
    series = series * small + 0.106035516
    series = series * small - 0.15305531
    series = series * small + 0.19675918
    series = series * small - 0.2495413
    series = series * small + 0.3332996
    series = series * small - 0.49999902
    series = series * small + 1.0
    return tl.maximum(x, 0.0) + series * small


@triton.jit
def sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def log_gamma(x):
    """log Gamma for `x > 0`, exactly 0 at 1 and 2, which are the arguments of rare counts; infinite from 0 down, outside a binomial's support.

    Below 8 the recurrence leads to `[1.5, 2.5]`, where `log Gamma(2 + u) = (1 - gamma) u + sum_k (-1)^k (zeta(k) - 1) u^k / k`
    (Abramowitz and Stegun 1964, 6.1.33); above 8 it is Stirling's series (6.1.41).
    """
    near = tl.minimum(x, 8.0)
    product = near * 0.0 + 1.0
    for _ in tl.static_range(6):
        over = near > 2.5
        near = tl.where(over, near - 1.0, near)
        product = tl.where(over, product * near, product)
    under = near < 1.5
    product = tl.where(under, 1.0 / near, product)
    u = tl.where(under, near - 1.0, near - 2.0)
    series = u * -9.43948828e-06 + 2.05072128e-05
    series = series * u - 4.49262367e-05
    series = series * u + 9.94575128e-05
    series = series * u - 2.23154758e-04
    series = series * u + 5.09669525e-04
    series = series * u - 1.19275391e-03
    series = series * u + 2.89051033e-03
    series = series * u - 7.38555103e-03
    series = series * u + 2.05808084e-02
    series = series * u - 6.73523011e-02
    series = series * u + 3.22467033e-01
    series = series * u + 4.22784335e-01
    far = tl.maximum(x, 8.0)
    inverse = 1.0 / far
    logarithm = tl.log(tl.where(x < 8.0, product, far))
    tail = inverse * (0.0833333333 - inverse * inverse * (0.00277777778 - inverse * inverse * 7.93650794e-04))
    value = tl.where(x < 8.0, logarithm + series * u, (far - 0.5) * logarithm - far + 0.918938533 + tail)
    return tl.where((x <= 0) | (x == float("inf")), float("inf"), value)


@triton.jit
def _value(a, b, c, total, log_factorial, KIND: tl.constexpr):
    """One element's term."""
    if KIND == 0:  # bernoulli: logits, x
        return a * b - softplus(a)
    elif KIND == 1:  # gaussian: mean, x, scale
        away = (b - a) / c
        return -0.5 * away * away - tl.log(c) - 0.918938533
    elif KIND == 2:  # binomial: logits, counts; the coefficient is computed here, as reading it would cost more
        choose = log_factorial - log_gamma(b + 1.0) - log_gamma(total - b + 1.0)
        return choose + (b * a - total * softplus(a))
    elif KIND == 3:  # gaussian_kl: mean, log variance
        return 0.5 * (a * a + tl.exp(b) - 1.0 - b)
    else:  # gaussian_log_prob: z, mean, log variance
        away = a - b
        return -0.5 * (away * away * tl.exp(-c) + c + 1.837877066)


@triton.jit
def _derivatives(a, b, c, total, KIND: tl.constexpr):
    """One element's derivatives with respect to a, b and c; 0 for operands that a kind does not have."""
    if KIND == 0:
        return b - sigmoid(a), a, 0.0
    elif KIND == 1:
        away = (b - a) / c
        return away / c, -away / c, (away * away - 1.0) / c
    elif KIND == 2:
        return b - total * sigmoid(a), 0.0, 0.0
    elif KIND == 3:
        return a, 0.5 * (tl.exp(b) - 1.0), 0.0
    else:
        precision = tl.exp(-c)
        pull = (b - a) * precision
        return pull, -pull, 0.5 * ((a - b) * (a - b) * precision - 1.0)


@triton.jit
def _operand(data, period, first, place, mask, start, width, LAYOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """An operand's tile, or the single number; 1 outside the edges, so that no division by zero happens there."""
    if LAYOUT == 0:
        return 0.0
    elif LAYOUT == 1:
        return tl.load(data)
    elif LAYOUT == 2:
        return tl.load(data + first * width + place, mask=mask, other=1.0)
    else:
        row = (first + tl.arange(0, ROWS)) % period
        column = start + tl.arange(0, WIDTH)
        return tl.load(data + row[:, None] * width + column[None, :], mask=mask, other=1.0)


@triton.jit
def elbo_fwd_kernel(
    a, b, c,  # [period, P], or one number; c or None
    a_period, b_period, c_period, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    out,  # [R]
    rows, width, total, log_factorial, KIND: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    lanes = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, width, WIDTH):
        place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
        one = _operand(a, a_period, first, place, mask, start, width, A, ROWS, WIDTH)
        two = _operand(b, b_period, first, place, mask, start, width, B, ROWS, WIDTH)
        three = _operand(c, c_period, first, place, mask, start, width, C, ROWS, WIDTH)
        lanes += tl.where(mask, _value(one, two, three, total, log_factorial, KIND), 0.0)
    row = tl.arange(0, ROWS)
    tl.store(out + first + row, tl.sum(lanes.to(tl.float64), axis=1).to(tl.float32), mask=first + row < rows)


@triton.jit
def elbo_bwd_kernel(
    a, b, c,  # [period, P], or one number; c or None
    a_period, b_period, c_period, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    upstream,  # [R]
    d_a, d_b, d_c,  # [R, P] or None
    rows, width, total, KIND: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    start = tl.program_id(1) * WIDTH
    place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
    one = _operand(a, a_period, first, place, mask, start, width, A, ROWS, WIDTH)
    two = _operand(b, b_period, first, place, mask, start, width, B, ROWS, WIDTH)
    three = _operand(c, c_period, first, place, mask, start, width, C, ROWS, WIDTH)
    by_one, by_two, by_three = _derivatives(one, two, three, total, KIND)
    row = tl.arange(0, ROWS)
    given = tl.load(upstream + first + row, mask=first + row < rows, other=0.0)[:, None]
    # An operand that is one number has the same derivative in every element of a row.
    given = given + tl.zeros((ROWS, WIDTH), tl.float32)
    if d_a is not None:
        tl.store(d_a + first * width + place, given * by_one, mask=mask)
    if d_b is not None:
        tl.store(d_b + first * width + place, given * by_two, mask=mask)
    if d_c is not None:
        tl.store(d_c + first * width + place, given * by_three, mask=mask)


@triton.jit
def _weights(log_weights, first, rows, start, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
    return tl.load(log_weights + first * width + place, mask=mask, other=-float("inf"))


@triton.jit
def elbo_fwd_kernel_log_mean_exp(
    log_weights,  # [R, K]
    out,  # [R]
    rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    highest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, WIDTH):
        tile = _weights(log_weights, first, rows, start, width, ROWS, WIDTH)
        higher = tl.maximum(highest, tl.max(tile, axis=1))
        # Relative to 0 where no weight is finite: infinite weights stay infinite.
        reference = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
        total = total * tl.exp(highest - reference) + tl.sum(tl.exp(tile - reference[:, None]), axis=1)
        highest = higher
    reference = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
    tl.store(out + first + row, reference + tl.log(total / width), mask=first + row < rows)


@triton.jit
def elbo_bwd_kernel_log_mean_exp(
    log_weights,  # [R, K]
    out, upstream,  # [R]
    gradient,  # [R, K]
    rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    inside = first + row < rows
    reference = tl.load(out + first + row, mask=inside, other=0.0)[:, None]
    # Normalized again: `out` is rounded to float32, which at -500 nats costs two digits of a weight.
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, WIDTH):
        total += tl.sum(tl.exp(_weights(log_weights, first, rows, start, width, ROWS, WIDTH) - reference), axis=1)
    # Beside an infinite weight the others have none.
    whole = tl.where(inside & (tl.reshape(reference, (ROWS,)) != float("inf")), total, 1.0)
    scale = (tl.load(upstream + first + row, mask=inside, other=0.0) / whole)[:, None]
    for start in range(0, width, WIDTH):
        place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
        tile = tl.load(log_weights + first * width + place, mask=mask, other=0.0)
        tl.store(gradient + first * width + place, scale * tl.exp(tile - reference), mask=mask)
