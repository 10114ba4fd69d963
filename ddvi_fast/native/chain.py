"""The denoising chain in C++: all steps of a tile of samples while it stays in cache, and a backward pass that recomputes activations.

Memory of the backward pass is O(T N D): it keeps the trajectory, and regenerates noise that was drawn.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ddvi_fast.native import loader
from ddvi_fast.reference.chain import ChainWeights, chain_noise, denoise, trajectory_log_ratio
from ddvi_fast.rng import Draws

# The network at single states is a handful of large products, which torch already does well: the reference serves.
__all__ = ["chain_noise", "denoise", "sample_chain", "sample_chain_from_draws", "trajectory_log_ratio", "unsupported"]

_SIZES = ("groups", "rows", "latent", "context_width", "hidden_width", "steps", "residual", "bf16", "threads", "noise_source")
_DRAWS = ("seed", "first_index", "rows_per_sample")
_INPUTS = ("start", "context", "first", "hidden", "last", "last_bias", "time_table", "coefficients", "noise")
_OUTPUTS = ("z", "path", "trajectory")
_UPSTREAM = ("z_upstream", "path_upstream", "trajectory_upstream")
_GRADIENTS = ("d_start", "d_context", "d_first", "d_hidden", "d_last", "d_last_bias", "d_time_table", "d_coefficients", "d_noise")
_NO_NOISE, _GIVEN_NOISE, _DRAWN_NOISE = range(3)


class ChainArguments(ctypes.Structure):
    """Mirrors the structure of csrc/chain_arguments.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [("seed", ctypes.c_uint64), ("first_index", ctypes.c_int64), ("rows_per_sample", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in (*_INPUTS, *_OUTPUTS, *_UPSTREAM, *_GRADIENTS)]
    )


def unsupported(
    y_T: Tensor, context: Tensor | None, weights: ChainWeights, coefficients: Tensor, noise: Tensor | None = None, residual: bool = False
) -> str | None:
    """Why the kernel cannot run this chain, or None."""
    reason = loader.unusable(y_T=y_T, context=context, **weights._asdict(), coefficients=coefficients, noise=noise)
    if reason is None and weights.hidden.shape[-1] % 64:
        return f"denoiser: the C++ chain takes hidden widths that are multiples of 64, got {weights.hidden.shape[-1]}"
    return reason


def sample_chain(
    y_T: Tensor,
    context: Tensor | None,
    weights: ChainWeights,
    coefficients: Tensor,
    noise: Tensor | None,
    residual: bool,
    *,
    bf16: bool = False,
    return_trajectory: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`reference.chain.sample_chain`, with the hidden layers' products in bf16 on request.

    Args:
        y_T: start [.., R, D].
        context: [.., R, C] or None.
        weights: of one network, or of G with a leading axis.
        coefficients: [T, 5].
        noise: [T, .., R, D], or None for a deterministic chain.
        residual: whether the first hidden layer is added to the third.
        bf16: round the hidden layers' weights and inputs to bf16 and add in float32, where the processor has such products;
            elsewhere they stay float32. First and last layer, states and path are float32 always.
        return_trajectory: write every state, else the third result is None.

    Returns:
        `(z [.., R, D], path [.., R] or None, trajectory [T + 1, .., R, D])`, path in nats.

    Raises:
        InputError: tensors that the kernel does not take (see `unsupported`), or a second derivative.
    """
    return _run(y_T, context, weights, coefficients, noise, None, residual, bf16, return_trajectory)


def sample_chain_from_draws(
    y_T: Tensor,
    context: Tensor | None,
    weights: ChainWeights,
    coefficients: Tensor,
    draws: Draws,
    rows_shape: tuple[int, ...],
    residual: bool,
    *,
    bf16: bool = False,
    return_trajectory: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`sample_chain` with the noise of `chain_noise(draws, T, rows_shape, D)` made in place, forward and backward.

    `rows_shape` is the shape of the rows before they were flattened to [R] or [G, R], so that each keeps its draw.
    """
    return _run(y_T, context, weights, coefficients, None, (draws, rows_shape[-1]), residual, bf16, return_trajectory)


def _run(y_T, context, weights, coefficients, noise, drawn, residual, bf16, return_trajectory):
    loader.require_usable(unsupported(y_T, context, weights, coefficients, noise))
    options = {"residual": residual, "bf16": bf16, "return_trajectory": return_trajectory, "drawn": drawn}
    return _Chain.apply(options, y_T, context, *weights, coefficients, noise)


class _Chain(Function):
    """Forward keeps its inputs and the trajectory; backward walks the steps upwards again."""

    @staticmethod
    def forward(ctx: Any, options: dict, *inputs: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        inputs = tuple(None if value is None else value.detach().contiguous() for value in inputs)
        start, coefficients, noise = inputs[0], inputs[7], inputs[8]
        ctx.options, ctx.needed = options, ctx.needs_input_grad[1:]
        ctx.set_materialize_grads(False)
        keep = options["return_trajectory"] or any(ctx.needed)
        z = torch.empty_like(start)
        path = None if noise is None and options["drawn"] is None else start.new_empty(start.shape[:-1])
        trajectory = start.new_empty((coefficients.shape[0] + 1, *start.shape)) if keep else None
        arguments = _arguments(options, inputs)
        _fill(arguments, _OUTPUTS, (z, path, trajectory))
        loader.library().ddvi_chain_forward(ctypes.byref(arguments))
        if any(ctx.needed):
            ctx.save_for_backward(*inputs, trajectory)
        return z, path, trajectory if options["return_trajectory"] else None

    @staticmethod
    @loader.first_derivative_only
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, trajectory = ctx.saved_tensors
        upstream = [None if value is None else value.contiguous() for value in upstream]
        arguments = _arguments(ctx.options, inputs)
        _fill(arguments, _OUTPUTS, (None, None, trajectory))
        _fill(arguments, _UPSTREAM, upstream)
        # The weights share their passes over the data: all five gradients or none.
        wanted = [*ctx.needed[:2], *[any(ctx.needed[2:7])] * 5, *ctx.needed[7:]]
        wanted[0] = True
        gradients = [torch.empty_like(value) if want and value is not None else None for want, value in zip(wanted, inputs, strict=True)]
        _fill(arguments, _GRADIENTS, gradients)
        loader.library().ddvi_chain_backward(ctypes.byref(arguments))
        return None, *[gradient if need else None for need, gradient in zip(ctx.needed, gradients, strict=True)]


def _arguments(options: dict, inputs: tuple[Tensor | None, ...]) -> ChainArguments:
    start, context, first, hidden, *_, coefficients, noise = inputs
    rows, latent = start.shape[-2:]
    width = 0 if context is None else context.shape[-1]
    source = _GIVEN_NOISE if noise is not None else _NO_NOISE if options["drawn"] is None else _DRAWN_NOISE
    draws, rows_per_sample = options["drawn"] or (Draws(0), rows)
    arguments = ChainArguments(
        start.shape[0] if first.dim() == 3 else 1, rows, latent, width, hidden.shape[-1], coefficients.shape[0],
        options["residual"], options["bf16"], torch.get_num_threads(), source, draws.seed, draws.first_index, max(1, rows_per_sample),
    )  # fmt: skip
    _fill(arguments, _INPUTS, inputs)
    return arguments


def _fill(arguments: ChainArguments, names: tuple[str, ...], values: Any) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(arguments, name, loader.pointer(value))
