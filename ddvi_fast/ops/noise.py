"""Forward noising of latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator, contiguous, filled, kept, shapes_of
from ddvi_fast.precision import full_precision
from ddvi_fast.reference import noise as reference
from ddvi_fast.rng import DeviceDraws, Draws
from ddvi_fast.schedules import NoiseSchedule


def add_noise(
    x0: Tensor, t: Tensor, schedule: NoiseSchedule, *, noise: Tensor | None = None, draws: Draws | DeviceDraws | None = None
) -> tuple[Tensor, Tensor]:
    """Draw `y_t ~ r(y_t | y_0)`: `y_t = sqrt(alpha_bar_t) x0 + deviation_t noise` (docs/method.md, section 1).

    Args:
        x0: latents [..., N, D].
        t: 0-based timesteps, int64 [..., N].
        schedule: the noising process.
        noise: standard normals of the shape of `x0`; drawn from `draws` (stream `NOISE`) if not given.
        draws: where in the run the rows stand; exactly one of `noise` and `draws` is needed.

    Returns:
        `(x_t, noise)`, both of the shape of `x0`.

    Raises:
        InputError: shapes that do not fit, timesteps outside [0, T), or no source of noise.

    Example:
        >>> from ddvi_fast import rng, schedules
        >>> x_t, noise = add_noise(torch.zeros(3, 2), torch.tensor([0, 5, 9]), schedules.make("cosine", 10), draws=rng.Draws(0))
        >>> x_t.shape, noise.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    check_latents(x0, "x0")
    check_timesteps(t, x0.shape[:-1], schedule.num_steps)
    check_noise(noise, draws, x0.shape)
    x0, noise = full_precision(x0, noise)
    signal, deviation = (column.to(x0) for column in (schedule.alpha_bars.sqrt(), schedule.noise_variances.sqrt()))
    backend = _backend.choose("noise", x0.device, x0=x0, signal=signal, deviation=deviation, noise=noise)
    if backend == "reference":
        return reference.add_noise(x0, t, signal, deviation, noise, draws)
    flat = [None if value is None else value.reshape(-1, x0.shape[-1]) for value in (x0, noise)]
    state, offset = (None, 0) if draws is None else (draws.state(x0.device), draws.offset)
    x_t, drawn = _add_noise(flat[0], t.flatten(), signal, deviation, flat[1], state, offset, x0.shape[-2], backend)
    return x_t.view(x0.shape), drawn.view(x0.shape) if noise is None else noise


def _compute(x0, t, signal, deviation, noise, state, offset, rows_per_sample, backend):
    operands = contiguous(x0, t, signal, deviation, noise)
    x_t, drawn = _backend.room(backend, "noise").add_noise(*operands, state, offset, rows_per_sample)
    return x_t, drawn if noise is None else x0.new_empty(0)


def _fake(x0, t, signal, deviation, noise, state, offset, rows_per_sample, backend):
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape if noise is None else 0)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *operands, noise, _, _, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*operands, output[1] if noise is None else noise)


def _gradient(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    if upstream is None:
        return (None,) * 9
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4)]
    d_x0, *rest = kept(_add_noise_backward(upstream, *ctx.saved_tensors, needed, ctx.backend), needed)
    return d_x0, None, *rest, None, None, None, None


def _compute_backward(upstream, x0, t, signal, deviation, noise, needed, backend):
    found = _backend.room(backend, "noise").add_noise_backward(*contiguous(upstream, x0, t, signal, deviation, noise), needed)
    return filled(found, x0)


def _fake_backward(upstream, x0, t, signal, deviation, noise, needed, backend):
    return shapes_of(needed, (x0, signal, deviation, noise), x0)


_OPERANDS = "Tensor x0, Tensor t, Tensor signal, Tensor deviation"
_add_noise = Operator(
    f"add_noise({_OPERANDS}, Tensor? noise, Tensor? state, SymInt offset, SymInt rows_per_sample, str backend) -> (Tensor, Tensor)", _compute, _fake
)
_add_noise_backward = Operator(
    f"add_noise_backward(Tensor upstream, {_OPERANDS}, Tensor noise, bool[] needed, str backend) -> Tensor[]", _compute_backward, _fake_backward
)
_add_noise.differentiate(_setup, _gradient)
_add_noise_backward.first_derivative_only()


def check_latents(value: Tensor, argument: str) -> None:
    """Latents are floating-point [..., N, D] with D of at least 1."""
    _checks.tensor(value, argument)
    _checks.require(value.dim() >= 2 and value.shape[-1] >= 1, argument, "shape [..., N, D]", value)


def check_timesteps(t: Tensor, rows: torch.Size, num_steps: int) -> None:
    """Timesteps are integers [..., N] in [0, T)."""
    _checks.tensor(t, "t", floating=False)
    _checks.require(t.dtype == torch.int64 and t.shape == rows, "t", f"an int64 tensor of shape {list(rows)}", t)
    if _checks.readable(t) and t.numel():
        low, high = (int(end) for end in torch.aminmax(t))
        _checks.require(low >= 0 and high < num_steps, "t", f"timesteps in [0, {num_steps})", f"{low} to {high}")


def check_noise(noise: Tensor | None, draws: Draws | DeviceDraws | None, shape: tuple[int, ...]) -> None:
    """Exactly one source of noise, of the right shape."""
    _checks.require((noise is None) != (draws is None), "noise, draws", "exactly one of the two", "neither" if draws is None else "both")
    if noise is not None:
        _checks.tensor(noise, "noise", tuple(shape))
