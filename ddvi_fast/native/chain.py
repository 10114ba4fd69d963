"""The denoising chain in C++: all steps of a tile of samples while it stays in cache, and a backward pass that recomputes activations.

Memory of the backward pass is O(T N D): it keeps the trajectory, and regenerates noise that was drawn.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast.native import loader

_SIZES = ("groups", "rows", "latent", "context_width", "hidden_width", "steps", "residual", "bf16", "threads", "noise_source")
_INPUTS = ("start", "context", "first", "hidden", "last", "last_bias", "time_table", "coefficients", "noise")
_OUTPUTS = ("z", "path", "trajectory")
_UPSTREAM = ("z_upstream", "path_upstream", "trajectory_upstream")
_GRADIENTS = ("d_start", "d_context", "d_first", "d_hidden", "d_last", "d_last_bias", "d_time_table", "d_coefficients", "d_noise")
_WEIGHTS = slice(2, 7)  # of the gradients
_NO_NOISE, _GIVEN_NOISE, _DRAWN_NOISE = range(3)


class ChainArguments(ctypes.Structure):
    """Mirrors the structure of csrc/chain_arguments.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [("seed", ctypes.c_uint64), ("first_index", ctypes.c_int64), ("rows_per_sample", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in (*_INPUTS, *_OUTPUTS, *_UPSTREAM, *_GRADIENTS)]
    )


def unsupported(precision: str = "float32", hidden: Tensor | None = None, **tensors: Tensor | None) -> str | None:
    """Why the kernel cannot run this chain, or None. `tensors` are float32 ones by name, `hidden` [.., 3, H, H] among them."""
    return loader.unusable_denoiser("chain", precision, hidden, tensors)


def forward(
    y_T: Tensor,
    context: Tensor | None,
    first: Tensor,
    hidden: Tensor,
    last: Tensor,
    last_bias: Tensor,
    time_table: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    state: Tensor | None,
    offset: int,
    rows_per_sample: int,
    residual: bool,
    precision: str,
    keep_trajectory: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`reference.chain.sample_chain` of contiguous tensors: `(z [.., R, D], path [.., R], trajectory [T + 1, .., R, D])`, path in nats.

    The noise is `noise` [T, .., R, D], or drawn at `state` (seed, first index) in place, or none: such a chain has no path (None).
    `precision` is that of the hidden layers' products: ``bf16`` rounds their weights and inputs and adds in float32, with
    products of bf16 where the processor has them and of float32 elsewhere. Without `keep_trajectory` the third result is None.
    """
    inputs = (y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise)
    arguments = _arguments(inputs, state, offset, rows_per_sample, residual, precision)
    z = torch.empty_like(y_T)
    path = None if noise is None and state is None else y_T.new_empty(y_T.shape[:-1])
    trajectory = y_T.new_empty((coefficients.shape[0] + 1, *y_T.shape)) if keep_trajectory else None
    loader.fill(arguments, _OUTPUTS, (z, path, trajectory))
    loader.library().ddvi_chain_forward(ctypes.byref(arguments))
    return z, path, trajectory


def backward(
    y_T: Tensor,
    context: Tensor | None,
    first: Tensor,
    hidden: Tensor,
    last: Tensor,
    last_bias: Tensor,
    time_table: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    state: Tensor | None,
    offset: int,
    rows_per_sample: int,
    residual: bool,
    precision: str,
    trajectory: Tensor,
    d_z: Tensor | None,
    d_path: Tensor | None,
    d_trajectory: Tensor | None,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of start, context, the five weights, coefficients and noise under upstream gradients of the results; None where not needed.

    Walks the steps upwards again from the `trajectory` of `forward`. Sums over rows have one order, whatever the number of threads.
    """
    inputs = (y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise)
    arguments = _arguments(inputs, state, offset, rows_per_sample, residual, precision)
    loader.fill(arguments, _OUTPUTS, (None, None, trajectory))
    loader.fill(arguments, _UPSTREAM, (d_z, d_path, d_trajectory))
    # The weights share their passes over the data: all five gradients or none. That of the start is carried in any case.
    wanted = [True, needed[1], *[any(needed[_WEIGHTS])] * 5, *needed[7:]]
    gradients = [torch.empty_like(value) if want and value is not None else None for want, value in zip(wanted, inputs, strict=True)]
    loader.fill(arguments, _GRADIENTS, gradients)
    loader.library().ddvi_chain_backward(ctypes.byref(arguments))
    return [gradient if need else None for need, gradient in zip(needed, gradients, strict=True)]


def _arguments(
    inputs: tuple[Tensor | None, ...], state: Tensor | None, offset: int, rows_per_sample: int, residual: bool, precision: str
) -> ChainArguments:
    start, context, first, hidden, *_, coefficients, noise = inputs
    rows, latent = start.shape[-2:]
    source = _GIVEN_NOISE if noise is not None else _NO_NOISE if state is None else _DRAWN_NOISE
    seed, first_index = loader.position(state, offset)
    arguments = ChainArguments(
        start.shape[0] if first.dim() == 3 else 1, rows, latent, 0 if context is None else context.shape[-1], hidden.shape[-1],
        coefficients.shape[0], residual, precision == "bf16", torch.get_num_threads(), source, seed, first_index, max(1, rows_per_sample),
    )  # fmt: skip
    loader.fill(arguments, _INPUTS, inputs)
    return arguments
