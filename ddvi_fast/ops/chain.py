"""The denoising chain: sampling with its path log-ratio."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, contiguous, filled, kept, shapes_of
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops.noise import check_latents, check_noise
from ddvi_fast.precision import check_reference_precision, full_precision, hidden_precision, without_autocast
from ddvi_fast.reference import chain as reference
from ddvi_fast.rng import DeviceDraws, Draws


class ChainSample(NamedTuple):
    """What a run of the chain gives: `z` [.., N, D], `path` [.., N] or None, `trajectory` [T + 1, .., N, D] or None, start first."""

    z: Tensor
    path: Tensor | None
    trajectory: Tensor | None


def sample_chain(
    y_T: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    coefficients: Tensor,
    *,
    draws: Draws | DeviceDraws | None = None,
    noise: Tensor | None = None,
    return_trajectory: bool = False,
    precision: str | None = None,
) -> ChainSample:
    """Run all `T` denoising steps from `y_T` to `z`, adding up the path log-ratio (docs/method.md, sections 1 and 2).

    Args:
        y_T: start [.., N, D]; with a grouped denoiser [G, .., N, D].
        context: [.., N, C], broadcast against the rows of `y_T`; None for a denoiser without context.
        denoiser: the network of the chain.
        coefficients: table [T, 5] of `NoiseSchedule.coefficients`.
        draws: where the rows stand in the run; step `i` draws from stream `CHAIN + i`.
        noise: standard normals [T, .., N, D] instead of `draws`; entry `i` is for 0-based step `i`.
            Without either the chain is deterministic: its table must have `eta = 0`, and `path` is None.
        return_trajectory: also return every state.
        precision: of the hidden layers' products, ``float32``, ``tf32``, ``bf16`` or ``fp16``, all added up in float32; everything else is
            float32. By default that of autocast, without it float32, or tf32 where torch's own products may use it. A processor
            without bf16 products rounds operands to bf16 and multiplies them in float32.

    Returns:
        `ChainSample(z, path, trajectory)`; `path` in nats.

    Raises:
        InputError: shapes that do not fit, `draws` for a deterministic table, or none for a stochastic one.

    Example:
        >>> from ddvi_fast import denoisers, rng, schedules
        >>> denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=0, num_steps=10)
        >>> table = schedules.make("cosine", 10).coefficients("v")
        >>> sample = sample_chain(torch.zeros(5, 2), None, denoiser, table, draws=rng.Draws(0))
        >>> sample.z.shape, sample.path.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    check_chain(y_T, context, denoiser, coefficients)
    stochastic = draws is not None or noise is not None
    _check_source(coefficients, stochastic)
    if stochastic:
        check_noise(noise, draws, (coefficients.shape[0], *y_T.shape))
    y_T, context, noise = full_precision(y_T, context, noise)
    shape, weights = y_T.shape, denoiser.chain_weights()
    start, spread = flat(y_T, weights), None if context is None else flat(spread_context(context, shape[:-1]), weights)
    handed = None if noise is None else noise.reshape(len(noise), *start.shape)
    precision, table = hidden_precision(precision, y_T.device), coefficients.to(y_T)
    tensors = {"y_T": start, "context": spread, **weights._asdict(), "coefficients": table, "noise": handed}
    backend = _backend.choose("chain", y_T.device, precision=precision, **tensors)
    if backend == "reference":
        check_reference_precision(precision, y_T.device)
        if draws is not None:
            handed = reference.chain_noise(draws, len(table), tuple(shape[:-1]), shape[-1], y_T).reshape(len(table), *start.shape)
        with without_autocast(y_T.device):
            z, path, trajectory = reference.sample_chain(start, spread, weights, table, handed, denoiser.residual, precision)
    else:
        state, offset = (None, 0) if draws is None else (draws.state(y_T.device), draws.offset)
        recomputes = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in tensors.values())
        options = (offset, shape[-2], denoiser.residual, precision, return_trajectory or recomputes, backend)
        z, path, trajectory = _chain(start, spread, *weights, table, handed, state, *options)
    states = trajectory.reshape(len(table) + 1, *shape) if return_trajectory else None
    return ChainSample(z.reshape(shape), path.reshape(shape[:-1]) if stochastic else None, states)


def trajectory_log_ratio(trajectory: Tensor, context: Tensor | None, denoiser: ResidualMLP, coefficients: Tensor) -> Tensor:
    """The path log-ratio [.., N] in nats of a given trajectory [T + 1, .., N, D], start first (docs/method.md, section 2).

    The states are data here: gradients reach the denoiser only through its density, and the states only through the
    formula. A doubly reparametrised gradient (Tucker et al. 2019) needs just that. The denoiser must not be grouped. All steps make one
    large batch for the network, which plain PyTorch does well on every backend.
    """
    _checks.tensor(trajectory, "trajectory")
    fits = trajectory.dim() >= 3 and trajectory.shape[0] == denoiser.num_steps + 1
    _checks.require(fits, "trajectory", f"shape [{denoiser.num_steps + 1}, .., N, {denoiser.latent_dim}]", trajectory)
    check_chain(trajectory[0], context, denoiser, coefficients)
    _check_source(coefficients, True)
    weights = denoiser.chain_weights()
    _checks.require(not weights.grouped, "denoiser", "one without groups", f"{denoiser.groups} groups")
    rows = trajectory.shape[1:-1]
    spread = None if context is None else spread_context(context, rows).reshape(-1, context.shape[-1])
    states = trajectory.reshape(trajectory.shape[0], -1, trajectory.shape[-1])
    return reference.trajectory_log_ratio(states, spread, weights, coefficients.to(trajectory), denoiser.residual).reshape(rows)


def _compute(y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise, state, offset, rows_per_sample, *options):
    *options, backend = options
    operands = contiguous(y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise)
    return tuple(filled(_backend.room(backend, "chain").forward(*operands, state, offset, rows_per_sample, *options), y_T))


def _fake(y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise, state, offset, rows_per_sample, *options):
    *_, keep_trajectory, _ = options
    stochastic = noise is not None or state is not None
    trajectory = (coefficients.shape[0] + 1, *y_T.shape) if keep_trajectory else 0
    return y_T.new_empty(y_T.shape), y_T.new_empty(y_T.shape[:-1] if stochastic else 0), y_T.new_empty(trajectory)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:10], output[2])
    *ctx.options, _, ctx.backend = inputs[10:]


def _gradient(ctx: Any, *upstream: Tensor | None) -> tuple:
    needed = list(ctx.needs_input_grad[:9])
    *tensors, trajectory = ctx.saved_tensors
    found = _chain_backward(*tensors, *ctx.options, trajectory, *upstream, needed, ctx.backend)
    return *kept(found, needed), *[None] * 7


def _compute_backward(*inputs):
    *inputs, needed, backend = inputs
    # A result that was absent is an empty tensor, and compiled code may hand over an empty gradient of it.
    upstream = [value if value is not None and value.numel() else None for value in inputs[15:]]
    tensors, state, options, given = contiguous(*inputs[:9]), inputs[9], inputs[10:14], contiguous(inputs[14], *upstream)
    return filled(_backend.room(backend, "chain").backward(*tensors, state, *options, *given, needed), inputs[0])


def _fake_backward(*inputs):
    return shapes_of(inputs[-2], inputs[:9], inputs[0])


_OPERANDS = (
    "Tensor y_T, Tensor? context, Tensor first, Tensor hidden, Tensor last, Tensor last_bias, Tensor time_table, Tensor coefficients, "
    "Tensor? noise, Tensor? state, SymInt offset, SymInt rows_per_sample, bool residual, str precision"
)
_UPSTREAM = "Tensor trajectory, Tensor? d_z, Tensor? d_path, Tensor? d_trajectory"
_chain = Operator(f"chain({_OPERANDS}, bool keep_trajectory, str backend) -> (Tensor, Tensor, Tensor)", _compute, _fake)
_chain_backward = Operator(f"chain_backward({_OPERANDS}, {_UPSTREAM}, bool[] needed, str backend) -> Tensor[]", _compute_backward, _fake_backward)
_chain.differentiate(_setup, _gradient)
_chain_backward.first_derivative_only()


def check_chain(y: Tensor, context: Tensor | None, denoiser: ResidualMLP, table: Tensor, states: str = "y_T", name: str = "coefficients") -> None:
    """States, context and table that fit the denoiser; `states` and `name` are what the caller calls them."""
    check_latents(y, states)
    _checks.require(y.shape[-1] == denoiser.latent_dim, states, f"{denoiser.latent_dim} latent dimensions", y)
    _checks.tensor(table, name, (denoiser.num_steps, 5))
    if denoiser.groups is not None:
        _checks.require(y.dim() >= 3 and y.shape[0] == denoiser.groups, states, f"shape [{denoiser.groups}, .., N, D]", y)
    denoiser.check_context(context)


def spread_context(context: Tensor, rows: torch.Size) -> Tensor:
    """`context` [.., N, C] broadcast to one row for each of `rows`."""
    paired = list(zip(reversed(context.shape[:-1]), reversed(rows), strict=False))
    fits = context.dim() - 1 <= len(rows) and all(have == 1 or have == want for have, want in paired)
    _checks.require(fits, "context", f"leading axes that broadcast to {list(rows)}", context)
    return context.expand(*rows, context.shape[-1])


def flat(value: Tensor, weights: reference.ChainWeights) -> Tensor:
    """Rows of [.., N, W] as [R, W], for grouped weights those of [G, .., N, W] as [G, R, W]."""
    return value.flatten(1, -2) if weights.grouped else value.flatten(0, -2)


def _check_source(coefficients: Tensor, stochastic: bool) -> None:
    """A density needs `s > 0` at every step."""
    if not _checks.readable(coefficients):
        return
    noisy = coefficients[:, 2] > 0
    if stochastic and not bool(noisy.all()):
        _checks.fail("coefficients", "positive step deviations, for a chain with a density", "a table of eta = 0", "leave out draws and noise")
    if not stochastic and bool(noisy.any()):
        _checks.fail("draws", "draws or noise, for a table with positive step deviations", None, "eta = 0 gives a deterministic chain")
