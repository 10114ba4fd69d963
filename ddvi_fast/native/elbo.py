"""The bound's reductions in C++: one pass over the data forward, one backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ddvi_fast.native import loader

_BERNOULLI, _GAUSSIAN, _BINOMIAL, _GAUSSIAN_KL, _GAUSSIAN_LOG_PROB = range(5)


def unsupported(*operands: Tensor | float, constant: Tensor | None = None) -> str | None:
    """Why the kernels cannot take these operands, or None; `constant` is one to which they give no gradient."""
    if constant is not None and constant.requires_grad and torch.is_grad_enabled():
        return "counts: the C++ likelihood has no gradient to them"
    return loader.unusable(**{f"operand {i}": value for i, value in enumerate(operands) if isinstance(value, Tensor)})


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """`reference.elbo.gaussian_kl`: [.., D] -> [..]."""
    return _reduce(_GAUSSIAN_KL, mean, log_var)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """`reference.elbo.gaussian_log_prob`: [.., D] -> [..]."""
    return _reduce(_GAUSSIAN_LOG_PROB, z, mean, log_var)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """`reference.elbo.bernoulli_log_likelihood`: [.., P] -> [..], leading axes broadcast."""
    return _reduce(_BERNOULLI, logits, x)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """`reference.elbo.gaussian_log_likelihood`: [.., P] -> [..]; `scale` is positive and broadcasts."""
    return _reduce(_GAUSSIAN, mean, x, scale)


def binomial_log_likelihood(logits: Tensor, counts: Tensor, total: float) -> Tensor:
    """`reference.elbo.binomial_log_likelihood`: [.., P] -> [..]; no gradient to `counts`.

    Raises:
        InputError: `counts` asks for a gradient, or tensors that the kernels do not take.
    """
    loader.require_usable(unsupported(logits, counts, constant=counts))
    choose = math.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)
    return _reduce(_BINOMIAL, logits, counts, choose, total=total)


def log_mean_exp(log_weights: Tensor, dim: int) -> Tensor:
    """`reference.elbo.log_mean_exp` over axis `dim`."""
    loader.require_usable(unsupported(log_weights))
    return _LogMeanExp.apply(log_weights.movedim(dim, -1))


def _reduce(operation: int, *operands: Tensor, total: float = 0.0) -> Tensor:
    loader.require_usable(unsupported(*operands))
    shape = torch.broadcast_shapes(*(value.shape for value in operands))
    return _Reduction.apply(operation, float(total), shape, *(_periodic(value, shape) for value in operands))


def _periodic(value: Tensor, shape: torch.Size) -> Tensor:
    """Leave as it is what the kernel can repeat, rows under missing leading axes or one number; spread out the rest."""
    if value.numel() == 1 or value.shape == shape[len(shape) - value.dim() :]:
        return value
    return value.expand(shape)


class _Reduction(Function):
    @staticmethod
    def forward(ctx: Any, operation: int, total: float, shape: torch.Size, *operands: Tensor) -> Tensor:
        operands = tuple(value.detach().contiguous() for value in operands)
        ctx.call = (operation, total, shape)
        ctx.save_for_backward(*operands)
        out = operands[0].new_empty(shape[:-1])
        _call(ctx.call, operands, None, out, ())
        return out

    @staticmethod
    @loader.first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        operands, shape = ctx.saved_tensors, ctx.call[2]
        gradients = [upstream.new_empty(shape) if need else None for need in ctx.needs_input_grad[3:]]
        _call(ctx.call, operands, upstream.contiguous(), None, gradients)
        folded = [None if full is None else full.sum_to_size(value.shape) for full, value in zip(gradients, operands, strict=True)]
        return None, None, None, *folded


def _call(call: tuple, operands: tuple[Tensor, ...], upstream: Tensor | None, out: Tensor | None, gradients: Any) -> None:
    operation, total, shape = call
    sizes = loader.integers(operation, shape[:-1].numel(), shape[-1], torch.get_num_threads())
    described = []
    for value in (*operands, *[None] * (3 - len(operands))):
        described += [*loader.pointers(value), *loader.integers(_period(value, shape))]
    gradients = (*gradients, *[None] * (3 - len(gradients)))
    loader.library().ddvi_elbo(*sizes, loader.number(total), *described, *loader.pointers(upstream, out, *gradients))


def _period(value: Tensor | None, shape: torch.Size) -> int:
    """Rows after which an operand repeats; 0 for a single number that serves for all."""
    if value is None or (value.numel() == 1 and shape.numel() != 1):
        return 0
    return max(1, value.shape[:-1].numel())


class _LogMeanExp(Function):
    """Over the last axis; the gradient is the normalised weights."""

    @staticmethod
    def forward(ctx: Any, log_weights: Tensor) -> Tensor:
        log_weights = log_weights.detach().contiguous()
        out = log_weights.new_empty(log_weights.shape[:-1])
        sizes = loader.integers(out.numel(), log_weights.shape[-1], torch.get_num_threads())
        loader.library().ddvi_log_mean_exp(*loader.pointers(log_weights), *sizes, *loader.pointers(out))
        ctx.save_for_backward(log_weights)
        return out

    @staticmethod
    @loader.first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.unsqueeze(-1) * torch.softmax(ctx.saved_tensors[0], -1)
