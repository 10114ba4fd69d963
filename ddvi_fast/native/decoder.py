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


class DecoderArguments(ctypes.Structure):
    """Mirror of the structure in csrc/decoder_arguments.h."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [(name, ctypes.c_double) for name in _NUMBERS]
        + [(name, ctypes.c_void_p) for name in ("widths", "weights", "turned", "biases", "z", "x", "scale", "d_z")]
    )


def unsupported(**tensors: Tensor | None) -> str | None:
    """The reason why the kernel cannot take these tensors, or None if it can."""
    return loader.unusable(**tensors)


class Gradient:
    """The gradient of the log-likelihood for latents, where row r has the data `r % N`.

    Args:
        x: Data [N, P], contiguous.
        weights: Contiguous weights of the layers, [outputs, inputs] each, the last with P outputs.
        biases: Contiguous biases of the layers.
        options: Activation of the hidden layers, and likelihood.
    """

    def __init__(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], options: DecoderOptions) -> None:
        count, scale = len(weights), options.scale
        low, high = options.value_range or (0.0, 1.0)
        widths = (ctypes.c_int64 * (count + 1))(weights[0].shape[1], *(len(bias) for bias in biases))
        turned = [weight.mT.contiguous() for weight in weights]
        tables = [(ctypes.c_void_p * count)(*map(loader.pointer, values)) for values in (weights, turned, biases)]
        kinds = (ACTIVATIONS.index(options.activation), LIKELIHOODS.index(options.likelihood))
        flags = (scale is not None and scale.numel() > 1, options.value_range is not None)
        sizes, numbers = (0, count, len(x), 0, *kinds, *flags), (options.slope, options.total, low, high - low)
        self._arguments = DecoderArguments(*sizes, *numbers, *map(ctypes.addressof, (widths, *tables)))
        loader.fill(self._arguments, ("x", "scale"), (x, scale))
        self._kept = (x, weights, turned, biases, options, widths, tables)  # memory to which the arguments point

    def __call__(self, z: Tensor) -> Tensor:
        """The gradient [R, D] at contiguous latents [R, D]."""
        d_z, arguments = torch.empty_like(z), self._arguments
        if z.numel() > 0:
            arguments.rows, arguments.threads = len(z), torch.get_num_threads()
            loader.fill(arguments, ("z", "d_z"), (z, d_z))
            loader.library().ddvi_likelihood_gradient(ctypes.byref(arguments))
        return d_z
