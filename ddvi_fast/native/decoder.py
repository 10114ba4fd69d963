"""Gradient of log p(x | z) for the latents of a multilayer perceptron in C++: all layers forward and backward, without an autograd graph."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast._operands import DecoderOptions
from ddvi_fast.native import loader

ACTIVATIONS = ("slope", "tanh", "silu")
LIKELIHOODS = ("bernoulli", "gaussian", "binomial")

_SIZES = ("rows", "layers", "period", "threads", "activation", "likelihood", "scale_period", "ranged")
_NUMBERS = ("slope", "total", "low", "span")
_TENSORS = ("z", "x", "scale", "d_z")


class DecoderArguments(ctypes.Structure):
    """Mirror of the structure in csrc/decoder_arguments.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [(name, ctypes.c_double) for name in _NUMBERS]
        + [(name, ctypes.c_void_p) for name in ("widths", "weights", "biases", *_TENSORS)]
    )


def unsupported(**tensors: Tensor | None) -> str | None:
    """The reason why the kernel cannot take these tensors, or None if it can."""
    return loader.unusable(**tensors)


def gradient(z: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], options: DecoderOptions) -> Tensor:
    """The gradient [R, D] of the log-likelihood for contiguous latents `z` [R, D], where row r has the data `r % N` of contiguous `x` [N, P].

    Args:
        z: Latents.
        x: Data.
        weights: Contiguous weights of the layers, [outputs, inputs] each, the last with P outputs.
        biases: Contiguous biases of the layers.
        options: Activation of the hidden layers, and likelihood.
    """
    d_z = torch.empty_like(z)
    if z.numel() == 0:
        return d_z
    count = len(weights)
    widths = (ctypes.c_int64 * (count + 1))(z.shape[1], *(len(bias) for bias in biases))
    tables = [(ctypes.c_void_p * count)(*(loader.pointer(value) for value in values)) for values in (weights, biases)]
    scale, (low, high) = options.scale, options.value_range or (0.0, 1.0)
    kinds = (ACTIVATIONS.index(options.activation), LIKELIHOODS.index(options.likelihood))
    flags = (scale is not None and scale.numel() > 1, options.value_range is not None)
    sizes = (len(z), count, len(x), torch.get_num_threads(), *kinds, *flags)
    arguments = DecoderArguments(*sizes, options.slope, options.total, low, high - low, *(ctypes.addressof(each) for each in (widths, *tables)))
    loader.fill(arguments, _TENSORS, (z, x, scale, d_z))
    loader.library().ddvi_decoder_gradient(ctypes.byref(arguments))
    return d_z
