"""Sleep term's regression in C++: noising, denoiser and loss on a tile of rows while it stays in cache; the backward pass recomputes them.

Only the losses are written: noise, noised latents and activations never exist in memory as whole arrays.
"""

from __future__ import annotations

import ctypes

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast._operands import Differentiable, SleepOperands, SleepResults
from ddvi_fast.native import denoiser, loader

LOSSES = ("squared", "absolute", "huber")

_SOURCES = ("x0", "t", "context", *denoiser.WEIGHTS, "table", "noise")
_INPUTS = (*_SOURCES, *denoiser.INDEX)
_GRADIENTS = tuple(f"d_{name}" for name in _SOURCES if name != "t")


class SleepArguments(ctypes.Structure):
    """Mirror of the structure in csrc/sleep_arguments.h."""

    _fields_ = denoiser.fields("loss", _INPUTS, ("value", "upstream"), _GRADIENTS)


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernel cannot run this regression, or None if it can; `tensors` are its float32 operands by name."""
    return denoiser.unusable("regression", precision, tensors)


def forward(operands: SleepOperands, keep: int = 0) -> SleepResults:
    """`reference.sleep.denoising_loss` [.., R] of contiguous tensors; for bf16 see `native.chain.forward`. Nothing else is kept.

    Raises:
        InputError: A step is not in the table.
    """
    value = operands.x0.new_empty(operands.t.shape)
    arguments = denoiser.arguments(SleepArguments, _INPUTS, operands, LOSSES.index(operands.loss))
    loader.fill(arguments, ("value",), (value,))
    _call("ddvi_sleep_forward", arguments, operands.t)
    return SleepResults(value)


def backward(operands: SleepOperands, kept: SleepResults, upstream: Tensor, needed: Differentiable) -> Differentiable:
    """The gradients that are `needed` under `upstream` [.., R].

    Sums over rows have one order, whatever the number of threads.
    """
    arguments = denoiser.arguments(SleepArguments, _INPUTS, operands, LOSSES.index(operands.loss))
    loader.fill(arguments, ("upstream",), (upstream,))
    gradients = denoiser.new_gradients(arguments, _GRADIENTS, operands, needed, latents=False)
    _call("ddvi_sleep_backward", arguments, operands.t)
    return gradients.only(needed)


def _call(name: str, arguments: ctypes.Structure, t: Tensor) -> None:
    function = getattr(loader.library(), name)
    function.restype = ctypes.c_int64
    misplaced = function(ctypes.byref(arguments))
    if misplaced >= 0:
        _checks.fail("t", f"steps in [0, {arguments.steps})", int(t.flatten()[misplaced]))
