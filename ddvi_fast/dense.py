"""Dense layers of the networks: product, bias, activation and dropout.

On the CPU the C++ kernels compute all in one call. On a GPU the products are those of torch, and Triton computes what follows one in one launch.
Inside `torch.compile` layers are plain PyTorch, and the compiler fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _backend, _operator, rng
from ddvi_fast._operands import DenseOptions
from ddvi_fast.precision import hidden_precision, narrow_type, without_autocast
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
    linear: nn.Linear, x: Tensor, activation: str = "none", rate: float = 0.0, draws: Draws | DeviceDraws | None = None, layer: int = 0,
    matrix: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute `dropout(activation(linear(x)))`.

    Under autocast to bf16 the kernel rounds the product's operands, adds in float32 and returns float32.

    Args:
        linear: Module with weight and bias.
        x: Input [.., N, inputs].
        activation: One of `ACTIVATIONS` (default ``none``).
        rate: Dropout rate in [0, 1) (default 0).
        draws: Position of the rows in the run's random numbers (default None: nothing is dropped).
        layer: Number of the layer, which has its own stream of dropout (default 0).
        matrix: The layer's weight as `narrow_matrices` rounds it (default None: the product's operands are rounded here).

    Returns:
        Output [.., N, outputs].

    Example:
        >>> dense(nn.Linear(3, 4), torch.zeros(5, 3), "relu").shape
        torch.Size([5, 4])
    """
    if on_device(x) and linear.bias is not None and x.dim() >= 2 and activation in SLOPES:
        narrow = narrow_type(x.device)
        if activation != "none" or narrow is not None:  # torch's own layer has the bias in its product
            return _on_device(linear, x, SLOPES[activation], rate, draws, layer, narrow, matrix)
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


def on_device(x: Tensor) -> bool:
    """Whether Triton's kernels can read a tensor, outside of what needs torch's dispatcher."""
    return x.dtype in _TRITON_TYPES and not _operator.needs_dispatch(x) and _backend.fused(x.device) == "triton"


_TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def narrow_matrices(layers: Sequence[nn.Linear], x: Tensor) -> list[Tensor | None]:
    """The weights of the layers of a network in the type of autocast's products, made in one launch; None where it is not needed."""
    narrow = narrow_type(x.device) if on_device(x) else None
    if narrow is None:
        return [None] * len(layers)
    weights = [layer.weight.detach() for layer in layers]
    made = [torch.empty_like(weight, dtype=narrow) for weight in weights]
    torch._foreach_copy_(made, weights)
    return list(made)


def _on_device(
    linear: nn.Linear, x: Tensor, slope: float, rate: float, draws: Draws | DeviceDraws | None, layer: int, narrow: torch.dtype | None,
    matrix: Tensor | None,
) -> Tensor:  # fmt: skip
    options = DenseOptions(slope, "float32")
    if draws is not None and rate > 0:
        options = DenseOptions(slope, "float32", rate, draws.state(x.device), draws.offset, x.shape[-2], rng.DROPOUT + layer)
    out_type = narrow if slope != 1 else None  # activations stay narrow, outputs enter densities
    flat = _Layer.apply(x.reshape(-1, x.shape[-1]), linear.weight, linear.bias, options, narrow, matrix, out_type)
    return flat.view(*x.shape[:-1], len(linear.weight))


class _Layer(torch.autograd.Function):
    """A layer on a device: the product of torch, and the kernel of what follows it. Operands of products are rounded to the `narrow` type."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, options: DenseOptions, narrow: torch.dtype | None, matrix: Tensor | None,
        out_type: torch.dtype | None,
    ) -> Tensor:  # fmt: skip
        rounded, matrix = (value if narrow is None else value.to(narrow) for value in (x, weight if matrix is None else matrix))
        with without_autocast(x.device):
            product = rounded @ matrix.mT
        out = _backend.implementation("triton", "dense").forward(product, bias, options, out_type or bias.dtype)
        ctx.save_for_backward(rounded, matrix, out)
        ctx.options, ctx.input_type, ctx.weight_type = options, x.dtype, weight.dtype
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        needed, kernels = ctx.needs_input_grad[:3], _backend.implementation("triton", "dense")
        if torch.is_grad_enabled():  # a second derivative needs plain products
            found = _differentiable(upstream, x.to(upstream), weight.to(upstream), out.to(upstream), ctx.options, needed)
            return *found, None, None, None, None
        d_product, d_bias = kernels.backward(upstream.contiguous(), out, ctx.options, x.dtype)
        d_x = _product(d_product, weight, ctx.input_type) if needed[0] else None
        d_weight = _product(d_product.mT, x, ctx.weight_type) if needed[1] else None
        return d_x, d_weight, d_bias if needed[2] else None, None, None, None, None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The product in a type: of narrow operands in float32, without a rounding and a conversion."""
    return torch.mm(left, right) if left.dtype == dtype else torch.mm(left, right, out_dtype=dtype)


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
    """The kernel's gradients in plain PyTorch."""
    gradient = upstream * _slopes(out, options)
    return gradient @ weight if needed[0] else None, gradient.mT @ x if needed[1] else None, gradient.sum(0) if needed[2] else None


def _slopes(out: Tensor, options: DenseOptions) -> Tensor:
    """Derivative of the output by what follows the product. It follows from the output: a dropped one is zero, and the others keep their sign."""
    at_zero = 0.0 if options.rate else options.slope
    return torch.where(out > 0, 1.0, torch.where(out < 0, options.slope, at_zero)) / (1 - options.rate)
