"""The sleep term's regression in C++: noising, denoiser and loss on a tile of samples while it stays in cache; backward computes them again.

Nothing but the losses is written: neither noise nor noised latents nor activations ever stand in memory as whole arrays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.native import loader

LOSSES = ("squared", "absolute", "huber")

_SIZES = ("groups", "rows", "latent", "context_width", "hidden_width", "steps", "residual", "bf16", "threads", "loss")
_INPUTS = ("x0", "t", "context", "first", "hidden", "last", "last_bias", "time_table", "table", "noise")
_OUTPUTS = ("value", "upstream")
_GRADIENTS = ("d_x0", "d_context", "d_first", "d_hidden", "d_last", "d_last_bias", "d_time_table", "d_table", "d_noise")
_WEIGHTS = slice(2, 7)  # of the gradients


class SleepArguments(ctypes.Structure):
    """Mirrors the structure of csrc/sleep_arguments.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [("seed", ctypes.c_uint64), ("first_index", ctypes.c_int64), ("rows_per_sample", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in (*_INPUTS, *_OUTPUTS, *_GRADIENTS)]
    )


def unsupported(precision: str = "float32", hidden: Tensor | None = None, **tensors: Tensor | None) -> str | None:
    """Why the kernel cannot run this regression, or None. `tensors` are float32 ones by name, `hidden` [.., 3, H, H] among them."""
    return loader.unusable_denoiser("regression", precision, hidden, tensors)


def forward(
    x0: Tensor,
    t: Tensor,
    context: Tensor | None,
    first: Tensor,
    hidden: Tensor,
    last: Tensor,
    last_bias: Tensor,
    time_table: Tensor,
    table: Tensor,
    noise: Tensor | None,
    state: Tensor | None,
    offset: int,
    rows_per_sample: int,
    loss: str,
    residual: bool,
    precision: str,
) -> Tensor:
    """`reference.sleep.denoising_loss` [.., R] of contiguous tensors; without `noise` it is drawn at `state` (seed, first index).

    `precision` is that of the hidden layers' products: ``bf16`` rounds their weights and inputs and adds in float32, with
    products of bf16 where the processor has them and of float32 elsewhere.

    Raises:
        InputError: a step that is not in the table.
    """
    inputs = (x0, t, context, first, hidden, last, last_bias, time_table, table, noise)
    arguments = _arguments(inputs, state, offset, rows_per_sample, loss, residual, precision)
    value = x0.new_empty(t.shape)
    arguments.value = loader.pointer(value)
    _call("ddvi_sleep_forward", arguments, t)
    return value


def backward(
    x0: Tensor,
    t: Tensor,
    context: Tensor | None,
    first: Tensor,
    hidden: Tensor,
    last: Tensor,
    last_bias: Tensor,
    time_table: Tensor,
    table: Tensor,
    noise: Tensor | None,
    state: Tensor | None,
    offset: int,
    rows_per_sample: int,
    loss: str,
    residual: bool,
    precision: str,
    upstream: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x0, context, the five weights, table and noise under `upstream` [.., R]; None where not needed.

    Sums over rows have one order, whatever the number of threads.
    """
    inputs = (x0, t, context, first, hidden, last, last_bias, time_table, table, noise)
    arguments = _arguments(inputs, state, offset, rows_per_sample, loss, residual, precision)
    # The weights share their passes over the data: all five gradients or none.
    wanted = [*needed[:2], *[any(needed[_WEIGHTS])] * 5, *needed[7:]]
    sources = (x0, *inputs[2:])
    gradients = [torch.empty_like(value) if want and value is not None else None for want, value in zip(wanted, sources, strict=True)]
    loader.fill(arguments, _GRADIENTS, gradients)
    arguments.upstream = loader.pointer(upstream)
    _call("ddvi_sleep_backward", arguments, t)
    return [gradient if need else None for need, gradient in zip(needed, gradients, strict=True)]


def _arguments(
    inputs: tuple[Tensor | None, ...], state: Tensor | None, offset: int, rows_per_sample: int, loss: str, residual: bool, precision: str
) -> SleepArguments:
    x0, _, context, first, hidden = inputs[:5]
    rows, latent = x0.shape[-2:]
    seed, first_index = loader.position(state, offset)
    arguments = SleepArguments(
        x0.shape[0] if first.dim() == 3 else 1, rows, latent, 0 if context is None else context.shape[-1], hidden.shape[-1], inputs[8].shape[0],
        residual, precision == "bf16", torch.get_num_threads(), LOSSES.index(loss), seed, first_index, max(1, rows_per_sample),
    )  # fmt: skip
    loader.fill(arguments, _INPUTS, inputs)
    return arguments


def _call(name: str, arguments: SleepArguments, t: Tensor) -> None:
    function = getattr(loader.library(), name)
    function.restype = ctypes.c_int64
    misplaced = function(ctypes.byref(arguments))
    if misplaced >= 0:
        _checks.fail("t", f"steps in [0, {arguments.steps})", int(t.flatten()[misplaced]))
