"""Dense layers of the networks: product, bias, activation and dropout, in one call where the C++ kernels support it.

On a GPU, and inside `torch.compile`, they are plain PyTorch: there the products are those of a library, and a compiler fuses the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _backend, _operator, rng
from ddvi_fast._operands import DenseOptions
from ddvi_fast.precision import hidden_precision
from ddvi_fast.rng import DeviceDraws, Draws

LEAKY_SLOPE = 0.2
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": lambda x: nn.functional.leaky_relu(x, LEAKY_SLOPE),
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
# Slopes below zero; an activation without a slope is applied to the kernel's output.
SLOPES = {"none": 1.0, "relu": 0.0, "leaky_relu": LEAKY_SLOPE}


def dropout(x: Tensor, rate: float, draws: Draws | DeviceDraws | None, layer: int) -> Tensor:
    """Set each value to zero with some probability, and scale the others so that the expectation stays.

    Args:
        x: Values [.., N, D].
        rate: Probability in [0, 1).
        draws: Position of the rows in the run's random numbers; None (evaluation) drops nothing.
        layer: Number of the layer, which has its own stream.
    """
    if draws is None or rate == 0:
        return x
    kept = rng.uniform(draws, tuple(x.shape), rng.DROPOUT + layer, device=x.device) >= rate
    return x * (kept.to(x.dtype) * (1 / (1 - rate)))


def dense(
    linear: nn.Linear, x: Tensor, activation: str = "none", rate: float = 0.0, draws: Draws | DeviceDraws | None = None, layer: int = 0
) -> Tensor:
    """Compute `dropout(activation(linear(x)))`.

    Under autocast to bf16 the kernel rounds the product's operands, adds in float32 and returns float32.

    Args:
        linear: Module with weight and bias.
        x: Input [.., N, inputs].
        activation: One of `ACTIVATIONS` (default ``none``).
        rate: Dropout rate in [0, 1) (default 0).
        draws: Position of the rows in the run's random numbers (default None: nothing is dropped).
        layer: Number of the layer, which has its own stream of dropout (default 0).

    Returns:
        Output [.., N, outputs].

    Example:
        >>> dense(nn.Linear(3, 4), torch.zeros(5, 3), "relu").shape
        torch.Size([5, 4])
    """
    precision = _fused_precision(linear, x)
    if precision is None:
        return dropout(ACTIVATIONS[activation](linear(x)), rate, draws, layer)
    slope = SLOPES.get(activation)
    if slope is None:
        return dropout(ACTIVATIONS[activation](_apply(linear, x, DenseOptions(1.0, precision))), rate, draws, layer)
    if draws is None or rate == 0:
        return _apply(linear, x, DenseOptions(slope, precision))
    state, rows = draws.state(), x.shape[-2]
    return _apply(linear, x, DenseOptions(slope, precision, rate, state, draws.offset, rows, rng.DROPOUT + layer))


def _fused_precision(linear: nn.Linear, x: Tensor) -> str | None:
    """The precision of the kernel's products, or None where it does not support this layer."""
    if _operator.needs_dispatch() or linear.bias is None or x.dim() < 2 or _backend.fused(x.device) != "cpp":
        return None
    precision = hidden_precision(None, x.device)
    reason = _backend.implementation("cpp", "dense").unsupported(precision, x=x, weight=linear.weight, bias=linear.bias)
    return None if reason else precision


def _apply(linear: nn.Linear, x: Tensor, options: DenseOptions) -> Tensor:
    return _Dense.apply(x.reshape(-1, x.shape[-1]), linear.weight, linear.bias, options).view(*x.shape[:-1], len(linear.weight))


class _Dense(torch.autograd.Function):
    """The kernel as an autograd function; the dispatch of a torch.library operator would cost as much as a small layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, options: DenseOptions) -> Tensor:
        x, weight, bias = _operator.contiguous(x, weight, bias)
        out = _backend.implementation("cpp", "dense").forward(x, weight, bias, options)
        ctx.save_for_backward(x, weight, out)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        needed, options = ctx.needs_input_grad[:3], ctx.options
        if torch.is_grad_enabled():  # a second derivative needs plain products
            return *_differentiable(upstream, x, weight, out, options, needed), None
        return *_backend.implementation("cpp", "dense").backward(upstream.contiguous(), x, weight, out, options, needed), None


def _differentiable(
    upstream: Tensor, x: Tensor, weight: Tensor, out: Tensor, options: DenseOptions, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The kernel's gradients in plain PyTorch. The slope follows from the output: a dropped one is zero, and the others keep their sign."""
    at_zero = 0.0 if options.rate else options.slope
    slope = torch.where(out > 0, 1.0, torch.where(out < 0, options.slope, at_zero)) / (1 - options.rate)
    gradient = upstream * slope
    return gradient @ weight if needed[0] else None, gradient.mT @ x if needed[1] else None, gradient.sum(0) if needed[2] else None
