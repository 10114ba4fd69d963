"""Reductions of the bound: log-likelihoods, the Gaussian KL and the log-mean-exp, in nats per example."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, broadcast_shapes
from ddvi_fast.precision import full_precision
from ddvi_fast.reference import elbo as reference


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) || N(0, I)), summed over the last axis (Kingma and Welling 2014, appendix B).

    Args:
        mean: Means [.., N, D].
        log_var: Log-variances [.., N, D].

    Returns:
        The divergence in nats, [.., N].

    Example:
        >>> gaussian_kl(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    _same_shape(mean, log_var)
    return _reduce("gaussian_kl", reference.gaussian_kl, {"mean": mean, "log_var": log_var})


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_var)), summed over the last axis.

    Args:
        z: Positions [.., N, D].
        mean: Means, broadcast against `z`.
        log_var: Log-variances, of the shape of `mean`.

    Returns:
        The log-density in nats, [.., N].
    """
    _same_shape(mean, log_var)
    _same_width(z, mean, "z", "mean")
    return _reduce("gaussian_log_prob", reference.gaussian_log_prob, {"z": z, "mean": mean, "log_var": log_var})


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Bernoulli log-likelihood from logits, summed over the last axis.

    Args:
        logits: Logits [.., N, P].
        x: Observations [.., N, P] in [0, 1], broadcast over leading axes; gray values give the cross-entropy.

    Returns:
        The log-likelihood in nats, [.., N].
    """
    _same_width(logits, x, "logits", "x")
    return _reduce("bernoulli", reference.bernoulli_log_likelihood, {"logits": logits, "x": x})


def gaussian_log_likelihood(mean: Tensor, x: Tensor, scale: Tensor | float) -> Tensor:
    """log N(x; mean, scale^2), summed over the last axis.

    Args:
        mean: Means [.., N, P].
        x: Observations [.., N, P], broadcast over leading axes.
        scale: Standard deviation, positive: a number, or a tensor that is broadcast.

    Returns:
        The log-likelihood in nats, [.., N].

    Raises:
        InputError: A scale that is negative, where its values can be read.
    """
    _same_width(mean, x, "mean", "x")
    if isinstance(scale, Tensor):
        _checks.tensor(scale, "scale")
        _checks.require(scale.device.type != "meta" or mean.device.type == "meta", "scale", "a tensor with values", scale)
        fits = all(a in (b, 1) or b == 1 for a, b in zip(reversed(scale.shape), reversed(mean.shape), strict=False))
        _checks.require(fits, "scale", f"a shape that broadcasts with {list(mean.shape)}", scale)
        _checks.require(not _checks.readable(scale) or not bool((scale < 0).any()), "scale", "positive numbers", "negative ones")
    else:
        scale = torch.full((), _checks.width(scale, "scale", double=mean.dtype == torch.float64), dtype=mean.dtype, device=mean.device)
    return _reduce("gaussian", reference.gaussian_log_likelihood, {"mean": mean, "x": x, "scale": scale.to(mean)})


def binomial_log_likelihood(logits: Tensor, counts: Tensor, total: int) -> Tensor:
    """log Binomial(counts; total, sigmoid(logits)), summed over the last axis.

    Args:
        logits: Logits [.., N, P].
        counts: Observed counts [.., N, P] in [0, total], broadcast over leading axes.
        total: Number of trials, at least 1.

    Returns:
        The log-likelihood in nats, [.., N].
    """
    _same_width(logits, counts, "logits", "counts")
    total = _checks.integer(total, "total", at_least=1)
    plain = functools.partial(reference.binomial_log_likelihood, total=float(total))
    return _reduce("binomial", plain, {"logits": logits}, counts, float(total))


def log_mean_exp(log_weights: Tensor, dim: int) -> Tensor:
    """`log mean exp(log_weights)` without overflow: the importance-weighted bound of Burda et al. (2016).

    Args:
        log_weights: Logarithms of importance weights, of any shape.
        dim: Axis of the mean, with at least one weight.

    Returns:
        The log-mean, of the shape of `log_weights` without that axis.

    Example:
        >>> round(log_mean_exp(torch.tensor([[1000.0], [1000.0]]), 0).item(), 3)
        1000.0
    """
    _checks.tensor(log_weights, "log_weights")
    dim = _checks.integer(dim, "dim", -log_weights.dim(), log_weights.dim())
    _checks.require(log_weights.shape[dim] >= 1, "log_weights", f"at least one weight along axis {dim}", log_weights)
    (log_weights,) = full_precision(log_weights)
    backend = _backend.choose("elbo", log_weights.device, log_weights=log_weights)
    if backend == "reference":
        return reference.log_mean_exp(log_weights, dim)
    last = log_weights.movedim(dim, -1)
    return _log_mean_exp(last.reshape(-1, last.shape[-1]), backend).reshape(last.shape[:-1])


def _reduce(kind: str, plain: Callable[..., Tensor], operands: dict[str, Tensor], counts: Tensor | None = None, total: float = 0.0) -> Tensor:
    values = full_precision(*operands.values(), *([] if counts is None else [counts]))
    constants = {} if counts is None else {"counts": values[-1]}
    backend = _backend.choose("elbo", values[0].device, constants=constants, **dict(zip(operands, values, strict=False)))
    if backend == "reference":
        return plain(*values)
    shape, periodic = values[0].shape, values
    if any(value.shape != shape for value in values):
        shape = broadcast_shapes(*(value.shape for value in values))
        periodic = [_periodic(value, shape) for value in values]
    return _elbo(kind, *periodic, *[None] * (3 - len(periodic)), shape, total, backend)


def _periodic(value: Tensor, shape: torch.Size) -> Tensor:
    """Expand an operand, unless the kernels can repeat it: rows under missing leading axes, or one number."""
    if value.numel() == 1 or value.shape == shape[len(shape) - value.dim() :]:
        return value
    return value.expand(shape)


def _compute(kind, first, second, third, shape, total, backend):
    operands = [value for value in (first, second, third) if value is not None]
    return _backend.implementation(backend, "elbo").forward(kind, operands, shape, total)


def _fake(kind, first, second, third, shape, total, backend):
    return first.new_empty(shape[:-1])


def _compute_backward(kind, first, second, third, shape, total, upstream, needed, backend):
    operands = [value for value in (first, second, third) if value is not None]
    full = _backend.implementation(backend, "elbo").backward(kind, operands, shape, total, upstream, needed[: len(operands)])
    summed = [None if each is None else each.sum_to_size(value.shape) for each, value in zip(full, operands, strict=True)]
    return summed + [None] * (3 - len(operands))


_elbo = Operator(
    "elbo(str kind, Tensor first, Tensor second, Tensor? third, SymInt[] shape, float total, str backend) -> Tensor",
    _compute,
    _fake,
    _compute_backward,
    gradients_of=("first", "second", "third"),
)


def _compute_log_mean_exp(log_weights, backend):
    return _backend.implementation(backend, "elbo").log_mean_exp(log_weights)


def _fake_log_mean_exp(log_weights, backend):
    return log_weights.new_empty(len(log_weights))


def _compute_log_mean_exp_backward(log_weights, out, upstream, needed, backend):
    return [_backend.implementation(backend, "elbo").log_mean_exp_backward(log_weights, out, upstream)]


_log_mean_exp = Operator(
    "log_mean_exp(Tensor log_weights, str backend) -> Tensor",
    _compute_log_mean_exp,
    _fake_log_mean_exp,
    _compute_log_mean_exp_backward,
    gradients_of=("log_weights",),
    saved=(0,),
)


def _same_shape(mean: Tensor, log_var: Tensor) -> None:
    _check_rows(mean, "mean")
    _check_rows(log_var, "log_var")
    _checks.require(mean.shape == log_var.shape, "log_var", f"shape {list(mean.shape)}", log_var)


def _same_width(first: Tensor, second: Tensor, name: str, other: str) -> None:
    """Check that two operands have one last axis, and leading axes that broadcast."""
    _check_rows(first, name)
    _check_rows(second, other)
    _checks.require(first.shape[-1] == second.shape[-1], other, f"a last axis of {first.shape[-1]}", second)
    pairs = zip(reversed(first.shape[:-1]), reversed(second.shape[:-1]), strict=False)
    _checks.require(all(a == b or a == 1 or b == 1 for a, b in pairs), other, f"leading axes that broadcast with {list(first.shape[:-1])}", second)


def _check_rows(value: Tensor, name: str) -> None:
    _checks.tensor(value, name)
    _checks.require(value.dim() >= 1, name, "shape [.., N, P]", value)
