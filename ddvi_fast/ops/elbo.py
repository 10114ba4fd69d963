"""The bound's reductions, in nats per example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, contiguous, filled, kept
from ddvi_fast.precision import full_precision
from ddvi_fast.reference import elbo as reference


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) || N(0, I)) in nats: [..., D] -> [...].

    Example:
        >>> gaussian_kl(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    _same_shape(mean, log_var, "log_var")
    return _reduce("gaussian_kl", {"mean": mean, "log_var": log_var})


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_var)) in nats: `z` [..., D], the others broadcast, -> [...]."""
    _same_shape(mean, log_var, "log_var")
    return _reduce("gaussian_log_prob", {"z": z, "mean": mean, "log_var": log_var})


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Bernoulli log-likelihood from logits, summed over the last axis.

    Args:
        logits: [..., N, P].
        x: [..., N, P] in [0, 1] (grey values give the cross-entropy); leading axes broadcast.

    Returns:
        nats, [..., N].
    """
    _same_width(logits, x)
    return _reduce("bernoulli", {"logits": logits, "x": x})


def gaussian_log_likelihood(mean: Tensor, x: Tensor, scale: Tensor | float) -> Tensor:
    """log N(x; mean, scale^2) in nats, summed over the last axis: [..., N, P] -> [..., N]; `scale` broadcasts and is positive."""
    _same_width(mean, x)
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=mean.dtype, device=mean.device)
    return _reduce("gaussian", {"mean": mean, "x": x, "scale": scale.to(mean)})


def binomial_log_likelihood(logits: Tensor, counts: Tensor, total: int) -> Tensor:
    """log Binomial(counts; total, sigmoid(logits)) in nats, summed over the last axis: [..., N, P] -> [..., N]."""
    _same_width(logits, counts)
    _checks.require(total >= 1, "total", "at least 1", total)
    return _reduce("binomial", {"logits": logits}, {"counts": counts}, float(total))


def log_mean_exp(log_weights: Tensor, dim: int) -> Tensor:
    """`log mean exp(log_weights)` over axis `dim`, without overflow: the importance-weighted bound of Burda et al. (2016).

    Example:
        >>> round(log_mean_exp(torch.tensor([[1000.0], [1000.0]]), 0).item(), 3)
        1000.0
    """
    _checks.require(log_weights.shape[dim] >= 1, "log_weights", f"at least one weight along axis {dim}", log_weights)
    (log_weights,) = full_precision(log_weights)
    backend = _backend.choose("elbo", log_weights.device, log_weights=log_weights)
    if backend == "reference":
        return reference.log_mean_exp(log_weights, dim)
    last = log_weights.movedim(dim, -1)
    return _log_mean_exp(last.reshape(-1, last.shape[-1]), backend).reshape(last.shape[:-1])


_REFERENCES = {
    "bernoulli": reference.bernoulli_log_likelihood,
    "gaussian": reference.gaussian_log_likelihood,
    "binomial": reference.binomial_log_likelihood,
    "gaussian_kl": reference.gaussian_kl,
    "gaussian_log_prob": reference.gaussian_log_prob,
}


def _reduce(kind: str, operands: dict[str, Tensor], constants: dict[str, Tensor] | None = None, total: float = 0.0) -> Tensor:
    names = [*operands, *(constants or {})]
    values = full_precision(*operands.values(), *(constants or {}).values())
    named = dict(zip(names, values, strict=True))
    constants = {name: named.pop(name) for name in constants or {}}
    backend = _backend.choose("elbo", values[0].device, constants=constants, **named)
    if backend == "reference":
        return _REFERENCES[kind](*values, *([total] if kind == "binomial" else []))
    shape, periodic = values[0].shape, values
    if any(value.shape != shape for value in values):
        shape = torch.broadcast_shapes(*(value.shape for value in values))
        periodic = [_periodic(value, shape) for value in values]
    return _elbo(kind, *periodic, *[None] * (3 - len(periodic)), shape, total, backend)


def _periodic(value: Tensor, shape: torch.Size) -> Tensor:
    """Leave as it is what the kernels can repeat, rows under missing leading axes or one number; spread out the rest."""
    if value.numel() == 1 or value.shape == shape[len(shape) - value.dim() :]:
        return value
    return value.expand(shape)


def _compute(kind, first, second, third, shape, total, backend):
    operands = [value for value in contiguous(first, second, third) if value is not None]
    return _backend.room(backend, "elbo").forward(kind, operands, shape, total)


def _fake(kind, first, second, third, shape, total, backend):
    return first.new_empty(shape[:-1])


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.kind, *operands, ctx.shape, ctx.total, ctx.backend = inputs
    ctx.save_for_backward(*operands)


def _gradient(ctx: Any, upstream: Tensor | None) -> tuple:
    if upstream is None:
        return (None,) * 7
    operands, needed = ctx.saved_tensors, list(ctx.needs_input_grad[1:4])
    full = kept(_elbo_backward(ctx.kind, *operands, ctx.shape, ctx.total, upstream, needed, ctx.backend), needed)
    folded = [None if each is None else each.sum_to_size(value.shape) for each, value in zip(full, operands, strict=True)]
    return None, *folded, None, None, None


def _compute_backward(kind, first, second, third, shape, total, upstream, needed, backend):
    operands = [value for value in contiguous(first, second, third) if value is not None]
    found = _backend.room(backend, "elbo").backward(kind, operands, shape, total, upstream.contiguous(), needed[: len(operands)])
    return filled([*found[: len(operands)], *[None] * (3 - len(operands))], first)


def _fake_backward(kind, first, second, third, shape, total, upstream, needed, backend):
    return [upstream.new_empty(shape if need else 0) for need in needed]


_OPERANDS = "str kind, Tensor first, Tensor second, Tensor? third, SymInt[] shape, float total"
_elbo = Operator(f"elbo({_OPERANDS}, str backend) -> Tensor", _compute, _fake)
_elbo_backward = Operator(f"elbo_backward({_OPERANDS}, Tensor upstream, bool[] needed, str backend) -> Tensor[]", _compute_backward, _fake_backward)
_elbo.differentiate(_setup, _gradient)
_elbo_backward.first_derivative_only()


def _compute_log_mean_exp(log_weights, backend):
    return _backend.room(backend, "elbo").log_mean_exp(log_weights.contiguous())


def _compute_log_mean_exp_backward(log_weights, out, upstream, backend):
    return _backend.room(backend, "elbo").log_mean_exp_backward(*contiguous(log_weights, out, upstream))


def _setup_log_mean_exp(ctx: Any, inputs: tuple, output: Tensor) -> None:
    log_weights, ctx.backend = inputs
    ctx.save_for_backward(log_weights, output)


def _gradient_log_mean_exp(ctx: Any, upstream: Tensor | None) -> tuple:
    return None if upstream is None else _log_mean_exp_backward(*ctx.saved_tensors, upstream, ctx.backend), None


_log_mean_exp = Operator(
    "log_mean_exp(Tensor log_weights, str backend) -> Tensor",
    _compute_log_mean_exp,
    lambda log_weights, backend: log_weights.new_empty(len(log_weights)),
)
_log_mean_exp_backward = Operator(
    "log_mean_exp_backward(Tensor log_weights, Tensor out, Tensor upstream, str backend) -> Tensor",
    _compute_log_mean_exp_backward,
    lambda log_weights, out, upstream, backend: torch.empty(log_weights.shape, dtype=log_weights.dtype, device=log_weights.device),
)
_log_mean_exp.differentiate(_setup_log_mean_exp, _gradient_log_mean_exp)
_log_mean_exp_backward.first_derivative_only()


def _same_shape(first: Tensor, second: Tensor, argument: str) -> None:
    _checks.require(first.shape == second.shape, argument, f"shape {list(first.shape)}", second)


def _same_width(output: Tensor, x: Tensor) -> None:
    _checks.require(output.shape[-1] == x.shape[-1], "x", f"a last axis of {output.shape[-1]}", x)
