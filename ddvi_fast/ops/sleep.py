"""The sleep term's regression of the chain's network: noising, the denoiser at one random step per row, and its loss in one operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddvi_fast import _backend, _checks, rng
from ddvi_fast._operator import Operator, contiguous, filled, kept, shapes_of
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops.chain import check_chain, flat, spread_context
from ddvi_fast.ops.noise import check_noise, check_timesteps
from ddvi_fast.precision import check_reference_precision, full_precision, hidden_precision, without_autocast
from ddvi_fast.reference import sleep as reference
from ddvi_fast.rng import DeviceDraws, Draws
from ddvi_fast.schedules import NoiseSchedule

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
    precision: str | None = None,
) -> Tensor:
    """The sleep term's regression: noise `x0` to step `t`, predict, compare (docs/method.md, section 3).

    Args:
        x0: latents [.., N, D]; with a grouped denoiser [G, .., N, D].
        t: 0-based timesteps, int64 [.., N].
        context: [.., N, C] or None.
        denoiser: the network of the chain.
        schedule: the noising process.
        parametrisation: what the network predicts: ``eps``, ``x0``, ``v`` or ``mean``.
        loss: ``squared``, ``absolute`` or ``huber`` error.
        noise, draws: as in `add_noise`.
        precision: as in `sample_chain`.

    Returns:
        [.., N], the mean over latent dimensions.

    Example:
        >>> import torch
        >>> from ddvi_fast import denoisers, rng, schedules
        >>> denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=0, num_steps=10)
        >>> t = torch.tensor([0, 4, 9])
        >>> denoising_loss(torch.zeros(3, 2), t, None, denoiser, schedules.make("cosine", 10), draws=rng.Draws(0)).shape
        torch.Size([3])
    """
    table = schedule.regression_table(parametrisation, 1 / denoiser.latent_dim, dtype=_checks.tensor(x0, "x0").dtype)
    return regression(x0, t, context, denoiser, table, loss=loss, noise=noise, draws=draws, precision=precision)


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
    precision: str | None = None,
) -> Tensor:
    """`weight_t sum_d rho(o_d - c0_t x0_d - c1_t eps_d)`, `o` the denoiser at `y_t = signal_t x0 + deviation_t eps`, at every row's step `t`.

    `table` [T, 5] has the columns signal, deviation, c0, c1 and weight, those of `NoiseSchedule.regression_table` or `divergence_table`;
    everything else is as in `denoising_loss`. Returns [.., N] in units of the weight.
    """
    _checks.choice(loss, LOSSES, "loss")
    check_chain(x0, context, denoiser, table, "x0", "table")
    check_timesteps(t, x0.shape[:-1], denoiser.num_steps)
    check_noise(noise, draws, x0.shape)
    x0, context, noise = full_precision(x0, context, noise)
    shape, weights = x0.shape, denoiser.chain_weights()
    start, handed = flat(x0, weights), None if noise is None else flat(noise, weights)
    spread = None if context is None else flat(spread_context(context, shape[:-1]), weights)
    steps, table, precision = t.reshape(start.shape[:-1]), table.to(x0), hidden_precision(precision, x0.device)
    tensors = {"x0": start, "context": spread, **weights._asdict(), "table": table, "noise": handed}
    backend = _backend.choose("sleep", x0.device, precision=precision, **tensors)
    if backend == "reference":
        check_reference_precision(precision, x0.device)
        if draws is not None:
            handed = flat(rng.normal(draws, tuple(shape), rng.NOISE, device=x0.device, dtype=x0.dtype), weights)
        with without_autocast(x0.device):
            return reference.denoising_loss(start, steps, spread, weights, table, handed, loss, denoiser.residual, precision).reshape(shape[:-1])
    state, offset = (None, 0) if draws is None else (draws.state(x0.device), draws.offset)
    options = (offset, shape[-2], loss, denoiser.residual, precision, backend)
    return _sleep(start, steps, spread, *weights, table, handed, state, *options).reshape(shape[:-1])


def _compute(x0, t, context, first, hidden, last, last_bias, time_table, table, noise, state, *options):
    *options, backend = options
    operands = contiguous(x0, t, context, first, hidden, last, last_bias, time_table, table, noise)
    return _backend.room(backend, "sleep").forward(*operands, state, *options)


def _fake(x0, t, *_):
    return x0.new_empty(t.shape)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:11])
    *ctx.options, ctx.backend = inputs[11:]


def _gradient(ctx: Any, upstream: Tensor | None) -> tuple:
    if upstream is None:
        return (None,) * 17
    needed = [ctx.needs_input_grad[i] for i in (0, *range(2, 10))]
    found = _sleep_backward(*ctx.saved_tensors, *ctx.options, upstream, needed, ctx.backend)
    d_x0, *rest = kept(found, needed)
    return d_x0, None, *rest, *[None] * 7


def _compute_backward(*inputs):
    *inputs, upstream, needed, backend = inputs
    operands = contiguous(*inputs[:10])
    return filled(_backend.room(backend, "sleep").backward(*operands, *inputs[10:], upstream.contiguous(), needed), operands[0])


def _fake_backward(*inputs):
    return shapes_of(inputs[-2], (inputs[0], *inputs[2:10]), inputs[0])


_OPERANDS = (
    "Tensor x0, Tensor t, Tensor? context, Tensor first, Tensor hidden, Tensor last, Tensor last_bias, Tensor time_table, Tensor table, "
    "Tensor? noise, Tensor? state, SymInt offset, SymInt rows_per_sample, str loss, bool residual, str precision"
)
_sleep = Operator(f"sleep({_OPERANDS}, str backend) -> Tensor", _compute, _fake)
_sleep_backward = Operator(f"sleep_backward({_OPERANDS}, Tensor upstream, bool[] needed, str backend) -> Tensor[]", _compute_backward, _fake_backward)
_sleep.differentiate(_setup, _gradient)
_sleep_backward.first_derivative_only()
