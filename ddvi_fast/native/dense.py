"""Dense layers in C++: product, bias, activation and dropout in one call, and their gradients in another."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast._operands import DenseOptions
from ddvi_fast.native import denoiser, loader, memory

_SIZES = ("rows", "inputs", "outputs", "bf16", "threads")
_TENSORS = ("x", "weight", "bias", "out", "upstream", "d_x", "d_weight", "d_bias")


class DenseArguments(ctypes.Structure):
    """Mirror of the structure in csrc/dense_arguments.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [("slope", ctypes.c_double), ("rate", ctypes.c_double), ("stream", ctypes.c_int64)]
        + [*denoiser.DRAW_FIELDS]
        + [(name, ctypes.c_void_p) for name in _TENSORS]
    )


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernel cannot take these tensors or this precision, or None if it can."""
    if precision not in loader.PRECISIONS:
        return f"precision: the C++ dense layer has {' and '.join(loader.PRECISIONS)}, got {precision}"
    return loader.unusable(**tensors)


def forward(x: Tensor, weight: Tensor, bias: Tensor, options: DenseOptions) -> Tensor:
    """The layer's output [R, M] for contiguous `x` [R, K], `weight` [M, K] and `bias` [M].

    The precision bf16 rounds the product's operands and adds in float32, with products of bf16 where the processor has them and of float32
    elsewhere.
    """
    out = memory.empty(len(x), len(weight))
    arguments = _arguments(x, weight, options)
    arguments.seed, arguments.first_index = loader.position(options.state, options.offset)
    arguments.rows_per_sample, arguments.stream = max(1, options.rows_per_sample), options.stream
    loader.fill(arguments, _TENSORS[:4], (x, weight, bias, out))
    loader.library().ddvi_dense_forward(ctypes.byref(arguments))
    return out


def backward(upstream: Tensor, x: Tensor, weight: Tensor, out: Tensor, options: DenseOptions, needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of x, weight and bias under `upstream` [R, M], None where not needed; `out` is the result of `forward`."""
    d_x = memory.empty(*x.shape) if needed[0] else None
    d_weight = memory.empty(*weight.shape) if needed[1] else None
    d_bias = memory.empty(len(weight)) if needed[2] else None
    if len(x) == 0:
        return [None if gradient is None else gradient.zero_() for gradient in (d_x, d_weight, d_bias)]
    arguments = _arguments(x, weight, options)
    loader.fill(arguments, ("x", "weight", *_TENSORS[3:]), (x, weight, out, upstream, d_x, d_weight, d_bias))
    loader.library().ddvi_dense_backward(ctypes.byref(arguments))
    return [d_x, d_weight, d_bias]


def _arguments(x: Tensor, weight: Tensor, options: DenseOptions) -> DenseArguments:
    sizes = (len(x), weight.shape[1], len(weight), options.precision == "bf16", torch.get_num_threads())
    return DenseArguments(*sizes, options.slope, options.rate, rows_per_sample=1)
