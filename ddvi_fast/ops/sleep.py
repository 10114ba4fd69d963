"""The sleep term's regression: noising, the denoiser at one random step per row, and its loss in one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks, _signature, rng
from ddvi_fast._operands import (
    OF_CONTEXT,
    OF_LATENTS,
    OF_NOISE,
    OF_TABLE,
    OF_WEIGHTS,
    Differentiable,
    SleepOperands,
    SleepResults,
)
from ddvi_fast._operator import Operator
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops.chain import call_of, check_chain, check_denoiser, check_types, flat, in_shape, row_index, spread_context
from ddvi_fast.ops.noise import check_noise, check_timesteps, timesteps_of
from ddvi_fast.precision import check_reference_precision, full_precision, hidden_precision, without_autocast
from ddvi_fast.reference import sleep as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import DeviceDraws, Draws
from ddvi_fast.schedules import PARAMETRISATIONS, NoiseSchedule

LOSSES = tuple(reference.ERRORS)


def denoising_loss(
    x0: Tensor,
    t: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    schedule: NoiseSchedule,
    *,
    parametrisation: str = "eps",
    loss: str = "huber",
    noise: Tensor | None = None,
    draws: Draws | DeviceDraws | None = None,
    groups: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """The sleep term's regression: noise `x0` to step `t`, predict, compare (docs/method.md, section 3).

    Args:
        x0: Latents [.., N, D]; [G, .., N, D] for a grouped denoiser without `groups`.
        t: 0-based timestep of each row, int64 or int32 [.., N].
        context: Context of each row, [.., N, C], broadcast against the rows of `x0`; None for a denoiser without context.
        denoiser: The network of the chain.
        schedule: The noising process.
        parametrisation: What the network predicts: ``eps``, ``x0``, ``v`` or ``mean`` (default ``eps``).
        loss: Error of the prediction: ``squared``, ``absolute`` or ``huber`` (default ``huber``).
        noise: Standard normals of the shape of `x0` (default None: drawn from `draws`, stream `NOISE`).
        draws: Position of the rows in the run's random numbers (default None). Exactly one of `noise` and `draws` is needed.
        groups: The group of each row, int64 [N] or [.., N] (default None), as in `sample_chain`.
        precision: Precision of the hidden layers' products, as in `sample_chain`.

    Returns:
        The loss of each row, [.., N], as the mean over latent dimensions.

    Raises:
        InputError: The shapes do not fit, a timestep or a group does not exist, a name is unknown, or there is no single source of noise.

    Example:
        >>> import torch
        >>> from ddvi_fast import denoisers, rng, schedules
        >>> denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=0, num_steps=10)
        >>> t = torch.tensor([0, 4, 9])
        >>> denoising_loss(torch.zeros(3, 2), t, None, denoiser, schedules.make("cosine", 10), draws=rng.Draws(0)).shape
        torch.Size([3])
    """
    _checks.instance(schedule, NoiseSchedule, "schedule", "a NoiseSchedule")
    check_denoiser(denoiser)
    _checks.choice(parametrisation, PARAMETRISATIONS, "parametrisation")
    table = schedule.regression_table(parametrisation, 1 / denoiser.latent_dim, dtype=_checks.tensor(x0, "x0").dtype)
    return regression(x0, t, context, denoiser, table, loss=loss, noise=noise, draws=draws, groups=groups, precision=precision)


def regression(
    x0: Tensor,
    t: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    table: Tensor,
    *,
    loss: str = "squared",
    noise: Tensor | None = None,
    draws: Draws | DeviceDraws | None = None,
    groups: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """Regression with any table: `weight_t sum_d rho(o_d - c0_t x0_d - c1_t eps_d)`, `o` the denoiser at `y_t = signal_t x0 + deviation_t eps`.

    Args:
        x0: Latents [.., N, D]; [G, .., N, D] for a grouped denoiser without `groups`.
        t: 0-based timestep of each row, int64 or int32 [.., N].
        context: Context of each row, [.., N, C], broadcast against the rows of `x0`; None for a denoiser without context.
        denoiser: The network of the chain.
        table: Table [T, 5] with columns signal, deviation, c0, c1 and weight, as `NoiseSchedule.regression_table` or `divergence_table` give it.
        loss: Error `rho`: ``squared``, ``absolute`` or ``huber`` (default ``squared``).
        noise: Standard normals of the shape of `x0` (default None: drawn from `draws`, stream `NOISE`).
        draws: Position of the rows in the run's random numbers (default None). Exactly one of `noise` and `draws` is needed.
        groups: The group of each row, int64 [N] or [.., N] (default None), as in `sample_chain`.
        precision: Precision of the hidden layers' products, as in `sample_chain`.

    Returns:
        The loss of each row, [.., N], in units of the weight.

    Raises:
        InputError: As in `denoising_loss`.
    """
    precision = hidden_precision(precision, _checks.tensor(x0, "x0").device)
    check_denoiser(denoiser)
    weights = denoiser.chain_weights()
    call = call_of("sleep", denoiser, (x0, context, *weights, table, noise), groups, precision, loss)
    backend = _signature.remembered(call)
    if backend is None:
        _checks.choice(loss, LOSSES, "loss")
        check_chain(x0, context, denoiser, table, "x0", "table", groups)
        check_types(weights, x0=x0, context=context)
    check_timesteps(t, x0.shape[:-1], denoiser.num_steps)
    check_noise(noise, draws, x0.shape)
    x0, context, noise = full_precision(x0, context, noise)
    shape, index = x0.shape, row_index(groups, x0.shape[:-1], denoiser.groups)
    grouped = weights.grouped and index.order is None
    start, given = flat(x0, grouped), None if noise is None else flat(noise, grouped)
    spread = None if context is None else flat(spread_context(context, shape[:-1]), grouped)
    tensors = Differentiable(start, spread, *weights, table.to(x0), given)
    if backend is None:
        named = dict(zip(("x0", *SleepOperands._fields[2:]), tensors, strict=False))
        backend = _signature.remember(call, _backend.choose("sleep", x0.device, precision=precision, **named))
    steps = timesteps_of(in_shape(t, start.shape[:-1]), backend)
    if backend == "reference":
        check_reference_precision(precision, x0.device)
        if draws is not None:
            given = flat(rng.normal(draws, tuple(shape), rng.NOISE, device=x0.device, dtype=x0.dtype), grouped)

        def run(weights: ChainWeights, x0: Tensor, t: Tensor, context: Tensor | None, noise: Tensor) -> tuple[Tensor]:
            return (reference.denoising_loss(x0, t, context, weights, tensors.table, noise, loss, denoiser.residual, precision),)

        with without_autocast(x0.device):
            (value,) = index.through(run, weights, ((start, 0), (steps, 0), (spread, 0), (given, 0)), (0,))
            return in_shape(value, shape[:-1])
    state, offset = (None, 0) if draws is None else (draws.state(x0.device), draws.offset)
    rest = state, offset, shape[-2], loss, denoiser.residual, precision
    return in_shape(_sleep(start, steps, *tensors[1:], *index, *rest, _kept(tensors), backend)[0], shape[:-1])


def _kept(differentiable: Differentiable) -> int:
    """The gradients for which the forward pass keeps something."""
    if not torch.is_grad_enabled():
        return 0
    needed = Differentiable(*(value is not None and value.requires_grad for value in differentiable))
    flags = (needed.latents, OF_LATENTS), (needed.context, OF_CONTEXT), (needed.table, OF_TABLE), (needed.noise, OF_NOISE)
    return OF_WEIGHTS * any(needed.weights) + sum(number for need, number in flags if need)


def _compute(*inputs):
    *operands, keep, backend = inputs
    return tuple(_backend.implementation(backend, "sleep").forward(SleepOperands(*operands), keep))


def _fake(*inputs):
    *values, keep, backend = inputs
    operands = SleepOperands(*values)
    results = SleepResults.empty(operands, operands.x0.new_empty(operands.t.shape), keep if backend in _KEEPING else 0)
    results = results.with_weights(operands) if results.states is not None and operands.t.numel() else results
    return tuple(operands.x0.new_empty(0) if value is None else value for value in results)


def _compute_backward(*inputs):
    *values, upstream, needed, backend = inputs
    operands, found = SleepOperands(*values[: -len(_KEPT) - 1]), values[-len(_KEPT) :]
    kept = SleepResults(upstream, *(value if value.numel() else None for value in found))
    return _backend.implementation(backend, "sleep").backward(operands, kept, upstream, Differentiable(*needed))


_KEEPING = ("triton",)  # backends that keep something for the backward pass
_KEPT = tuple(range(1, len(SleepResults._fields)))
_sleep = Operator(
    "sleep(Tensor x0, Tensor t, Tensor? context, Tensor first, Tensor hidden, Tensor last, Tensor last_bias, Tensor time_table, Tensor table, "
    "Tensor? noise, Tensor? order, Tensor? starts, Tensor? state, SymInt offset, SymInt rows_per_sample, str loss, bool residual, "
    "str precision, int keep, str backend) -> (" + ", ".join(["Tensor"] * len(SleepResults._fields)) + ")",
    _compute,
    _fake,
    _compute_backward,
    gradients_of=("x0", "context", *ChainWeights._fields, "table", "noise"),
    saved=_KEPT,
    constant=_KEPT,
)
