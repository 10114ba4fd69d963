"""Operands of the operations around the denoiser as named tuples, in the order of the operators' schemas.

Shapes: R rows of D latent dimensions, C context columns, hidden width H, T steps; `..` is empty or one group axis G. With an index that
gives each row its group, weights have the group axis and rows have none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast.precision import NARROW

# What the chain keeps for a backward pass: each value includes those before it.
NOTHING, TRAJECTORY, SIGNS, OUTPUTS = range(4)

# Largest memory for the ReLUs' signs of one call of Triton's kernels. A longer chain keeps its states alone, and its backward pass makes the signs
# again in pieces of at most this size.
SIGN_BYTES = 1 << 30


# Largest power of a kernel that stands for another's exponential.
MOST_POWER = 36


def kernel_powers(bandwidths: Sequence[float]) -> list[int]:
    """For each bandwidth of a kernel density the number of another one, and the power of that one's Gaussian kernel which is its own.

    `exp(-d / 2 h^2)` is the kernel of a bandwidth b to the power of `(b / h)^2`, where that is a whole number. Without such a bandwidth it is its
    own, to the power 1.

    Example:
        >>> kernel_powers([0.005, 0.008, 0.01, 0.03, 0.05])
        [3, 36, 1, 1, 3, 9, 3, 1, 4, 1]
    """
    return list(_powers(tuple(bandwidths)))


@functools.lru_cache(maxsize=64)
def _powers(bandwidths: tuple[float, ...]) -> tuple[int, ...]:
    found: dict[int, tuple[int, int]] = {}
    for s in sorted(range(len(bandwidths)), key=lambda s: -bandwidths[s]):
        fitting = []
        for base in (base for base, (other, _) in found.items() if other == base):
            ratio = bandwidths[base] / bandwidths[s]
            square = ratio * ratio  # of any size, where ratio**2 would overflow
            if 1.5 < square < MOST_POWER + 0.5 and abs(square / round(square) - 1) < 1e-7:
                fitting.append((round(square), base))
        power, base = min(fitting, default=(1, s))
        found[s] = (base, power)
    return tuple(number for s in range(len(bandwidths)) for number in found[s])


class Differentiable(NamedTuple):
    """One value for each operand of the chain or of the regression that has a gradient: the operand, its gradient, or whether that is needed."""

    latents: Any  # y_T or x0
    context: Any
    first: Any
    hidden: Any
    last: Any
    last_bias: Any
    time_table: Any
    table: Any  # coefficients of the chain, or the regression's table
    noise: Any

    @property
    def weights(self) -> tuple[Any, Any, Any, Any, Any]:
        """The five values of the denoiser's weights."""
        return self.first, self.hidden, self.last, self.last_bias, self.time_table

    def only(self, needed: Differentiable) -> Differentiable:
        """The same gradients, with None where nobody needs one."""
        return Differentiable(*(value if need else None for value, need in zip(self, needed, strict=True)))


class ChainOperands(NamedTuple):
    """Operands of `sample_chain`.

    Without `noise` and `state` the chain is deterministic; with a state the noise of row r is that of draw
    `r % rows_per_sample + 2^40 (r // rows_per_sample)` after the first.
    """

    y_T: Tensor  # [.., R, D]
    context: Tensor | None  # [.., R, C]
    first: Tensor  # [.., H, D + C]
    hidden: Tensor  # [.., 3, H, H]
    last: Tensor  # [.., D, H]
    last_bias: Tensor  # [.., D]
    time_table: Tensor  # [.., T, 4, H]
    coefficients: Tensor  # [T, 5]
    noise: Tensor | None  # [T, .., R, D]
    order: Tensor | None  # int64 [R]: the rows sorted by group, where they have an index
    starts: Tensor | None  # int64 [G + 1]: where each group starts in `order`
    state: Tensor | None  # int64 [2] on the device: seed and first draw index
    offset: int  # added to the first draw index
    rows_per_sample: int
    residual: bool  # whether the first hidden layer is added to the third
    precision: str  # of the hidden products: float32, tf32, bf16 or fp16

    @property
    def differentiable(self) -> Differentiable:
        """The operands that have a gradient."""
        return Differentiable(*self[:9])

    @property
    def drawn_from(self) -> Tensor | None:
        """The state from which the noise is drawn, None where it is given or there is none."""
        return self.state if self.noise is None else None

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The denoiser's five weights."""
        return self.first, self.hidden, self.last, self.last_bias, self.time_table

    @property
    def noisy(self) -> bool:
        """Whether the chain has noise, and so a path."""
        return self.noise is not None or self.state is not None


class DenseOptions(NamedTuple):
    """Options of a dense layer."""

    slope: float  # of the activation below zero: 1 for none, 0 for ReLU
    precision: str  # of the product's operands: float32 or bf16
    rate: float = 0.0  # dropout rate, 0 for none
    state: Tensor | None = None  # int64 [2]: seed and first draw index of the dropout
    offset: int = 0  # added to the first draw index
    rows_per_sample: int = 1
    stream: int = 0  # of the dropout


class ScheduleSpec(NamedTuple):
    """What the tables of a schedule are made of: its `kind`, and arguments of `NoiseSchedule.coefficients`."""

    kind: str
    parametrisation: str
    eta: float
    final_variance: float | None


class DecoderOptions(NamedTuple):
    """Activation and likelihood of a decoder that is a multilayer perceptron."""

    activation: str  # of the hidden layers: slope, tanh or silu
    slope: float  # below zero: 1 for none, 0 for ReLU
    likelihood: str  # bernoulli, gaussian or binomial
    scale: Tensor | None = None  # [P] or one number: standard deviation of the Gaussian likelihood
    value_range: tuple[float, float] | None = None  # of its mean, None for a mean that is the output
    total: float = 0.0  # number of trials of the binomial likelihood


class SleepOperands(NamedTuple):
    """Operands of `denoising_loss`; the noise is given or drawn as in `ChainOperands`."""

    x0: Tensor  # [.., R, D]
    t: Tensor  # int64 or, in Triton, int32 [.., R], 0-based
    context: Tensor | None  # [.., R, C]
    first: Tensor  # [.., H, D + C]
    hidden: Tensor  # [.., 3, H, H]
    last: Tensor  # [.., D, H]
    last_bias: Tensor  # [.., D]
    time_table: Tensor  # [.., T, 4, H]
    table: Tensor  # [T, 5]: signal, deviation, c0, c1, weight
    noise: Tensor | None  # [.., R, D]
    order: Tensor | None  # as in `ChainOperands`
    starts: Tensor | None
    state: Tensor | None  # int64 [2] on the device: seed and first draw index
    offset: int  # added to the first draw index
    rows_per_sample: int
    loss: str  # squared, absolute or huber
    residual: bool  # whether the first hidden layer is added to the third
    precision: str  # of the hidden products: float32, tf32, bf16 or fp16

    @property
    def differentiable(self) -> Differentiable:
        """The operands that have a gradient."""
        return Differentiable(self.x0, *self[2:10])

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The denoiser's five weights."""
        return self.first, self.hidden, self.last, self.last_bias, self.time_table

    @property
    def drawn_from(self) -> Tensor | None:
        """The state from which the noise is drawn, None where the noise is given."""
        return self.state if self.noise is None else None


def signs_shape(operands: ChainOperands) -> tuple[int, ...]:
    """Shape of the signs of a chain's ReLUs, 4 H bits a row and step."""
    return operands.coefficients.shape[0], *operands.y_T.shape[:-1], 4, operands.hidden.shape[-1] // 32


def signs_fit(operands: ChainOperands) -> bool:
    """Whether the signs take at most `SIGN_BYTES`."""
    return operands.coefficients.shape[0] * operands.y_T.shape[:-1].numel() * operands.hidden.shape[-1] // 2 <= SIGN_BYTES


# What the regression keeps for a backward pass: the sum of these numbers for the gradients that are needed.
OF_WEIGHTS, OF_LATENTS, OF_CONTEXT, OF_TABLE, OF_NOISE = 1, 2, 4, 8, 16


class SleepResults(NamedTuple):
    """Results of `denoising_loss`: all but the first are what a backend keeps for the backward pass, None where it keeps nothing.

    Rows are those of `x0` [.., R, D]. Gradients are those of each row's loss.
    """

    loss: Tensor  # [.., R]
    order: Tensor | None = None  # int64 [rows]: rows sorted by group and step
    starts: Tensor | None = None  # int64 [G T + 1]: where each step of each group starts in `order`
    states: Tensor | None = None  # [.., R, D]: inputs of the network
    signs: Tensor | None = None  # int32 [.., R, 4, H / 32]: signs of its ReLUs
    d_outputs: Tensor | None = None  # [.., R, D]
    d_x0: Tensor | None = None  # [.., R, D]
    d_context: Tensor | None = None  # [.., R, C]
    d_rows: Tensor | None = None  # [.., R, 5]: to the row's entries of the table
    d_noise: Tensor | None = None  # [.., R, D]
    matrices: Tensor | None = None  # [G, planes, 3, H, H], in a type of few bits: the hidden matrices
    biases: Tensor | None = None  # [G, T, 16, H]: the time table

    @classmethod
    def empty(cls, operands: SleepOperands, loss: Tensor, keep: int) -> SleepResults:
        """Memory for all that is kept of the rows for the gradients `keep`; order, starts, matrices and biases are left out."""
        x0, context, lead = operands.x0, operands.context, operands.t.shape
        if not keep:
            return cls(loss)
        return cls(
            loss,
            states=x0.new_empty(x0.shape),
            signs=x0.new_empty((*lead, 4, operands.hidden.shape[-1] // 32), dtype=torch.int32),
            d_outputs=x0.new_empty(x0.shape),
            d_x0=x0.new_empty(x0.shape) if keep & OF_LATENTS else None,
            d_context=context.new_empty(context.shape) if keep & OF_CONTEXT and context is not None else None,
            d_rows=x0.new_empty((*lead, 5)) if keep & OF_TABLE else None,
            d_noise=x0.new_empty(x0.shape) if keep & OF_NOISE else None,
        )

    def with_weights(self, operands: SleepOperands) -> SleepResults:
        """The same with memory for the rest."""
        t, hidden, steps = operands.t, operands.hidden, operands.table.shape[0]
        groups, width = hidden.shape[0] if hidden.dim() == 4 else 1, hidden.shape[-1]
        planes, low = (1, NARROW[operands.precision]) if operands.precision in NARROW else (2, torch.float16)
        return self._replace(
            order=t.new_empty(t.numel(), dtype=torch.int64),
            starts=t.new_empty(groups * steps + 1, dtype=torch.int64),
            matrices=hidden.new_empty((groups, planes, 3, width, width), dtype=low),
            biases=hidden.new_empty((groups, steps, 16, width), dtype=low),
        )
