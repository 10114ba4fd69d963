"""Forward noising of latents."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast._operator import Operator
from ddvi_fast.precision import full_precision
from ddvi_fast.reference import noise as reference
from ddvi_fast.rng import DeviceDraws, Draws
from ddvi_fast.schedules import NoiseSchedule


def add_noise(
    x0: Tensor, t: Tensor, schedule: NoiseSchedule, *, noise: Tensor | None = None, draws: Draws | DeviceDraws | None = None
) -> tuple[Tensor, Tensor]:
    """Draw `y_t ~ r(y_t | y_0)`: `y_t = sqrt(alpha_bar_t) x0 + deviation_t noise` (docs/method.md, section 1).

    Args:
        x0: Latents [.., N, D].
        t: 0-based timestep of each row, int64 or int32 [.., N]; on a GPU the latter saves memory traffic.
        schedule: The noising process.
        noise: Standard normals of the shape of `x0` (default None: drawn from `draws`, stream `NOISE`).
        draws: Position of the rows in the run's random numbers (default None). Exactly one of `noise` and `draws` is needed.

    Returns:
        `(x_t, noise)`, both of the shape of `x0`.

    Raises:
        InputError: The shapes do not fit, a timestep is outside [0, T), or there is no single source of noise.

    Example:
        >>> from ddvi_fast import rng, schedules
        >>> x_t, noise = add_noise(torch.zeros(3, 2), torch.tensor([0, 5, 9]), schedules.make("cosine", 10), draws=rng.Draws(0))
        >>> x_t.shape, noise.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    check_latents(x0, "x0")
    _checks.instance(schedule, NoiseSchedule, "schedule", "a NoiseSchedule")
    check_timesteps(t, x0.shape[:-1], schedule.num_steps)
    check_noise(noise, draws, x0.shape)
    x0, noise = full_precision(x0, noise)
    signal, deviation = (column.to(x0.device) for column in schedule._noising(x0.dtype))
    backend = _backend.choose("noise", x0.device, x0=x0, signal=signal, deviation=deviation, noise=noise)
    t = timesteps_of(t, backend)
    if backend == "reference":
        return reference.add_noise(x0, t, signal, deviation, noise, draws)
    flat = [None if value is None else value.reshape(-1, x0.shape[-1]) for value in (x0, noise)]
    state, offset = (None, 0) if draws is None else (draws.state(x0.device), draws.offset)
    x_t, drawn = _add_noise(flat[0], t.flatten(), signal, deviation, flat[1], state, offset, x0.shape[-2], backend)
    return x_t.view(x0.shape), drawn.view(x0.shape) if noise is None else noise


def _compute(x0, t, signal, deviation, noise, state, offset, rows_per_sample, backend):
    operation = _backend.implementation(backend, "noise")
    x_t, drawn = operation.add_noise(x0, t, signal, deviation, noise, state, offset, rows_per_sample)
    return x_t, drawn if noise is None else None


def _fake(x0, t, signal, deviation, noise, state, offset, rows_per_sample, backend):
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape if noise is None else 0)


def _compute_backward(x0, t, signal, deviation, noise, state, offset, rows_per_sample, drawn, upstream, needed, backend):
    noise = drawn if noise is None else noise
    return _backend.implementation(backend, "noise").add_noise_backward(upstream, x0, t, signal, deviation, noise, needed)


_add_noise = Operator(
    "add_noise(Tensor x0, Tensor t, Tensor signal, Tensor deviation, Tensor? noise, Tensor? state, SymInt offset, SymInt rows_per_sample, "
    "str backend) -> (Tensor, Tensor)",
    _compute,
    _fake,
    _compute_backward,
    gradients_of=("x0", "signal", "deviation", "noise"),
    saved=(1,),
    constant=(1,),
)


def check_latents(value: Tensor, argument: str) -> None:
    """Check that latents are floating-point [.., N, D] with D of at least 1."""
    _checks.tensor(value, argument)
    _checks.require(value.dim() >= 2 and value.shape[-1] >= 1, argument, "shape [..., N, D]", value)


def check_timesteps(t: Tensor, rows: torch.Size, num_steps: int) -> None:
    """Check that timesteps are int64 or int32 of shape `rows` in [0, num_steps)."""
    _checks.tensor(t, "t", floating=False)
    if t.dtype not in _WHOLE or t.shape != rows:
        _checks.fail("t", f"an int64 or int32 tensor of shape {list(rows)}", t)
    if _checks.readable(t) and t.numel():
        low, high = (int(end) for end in torch.aminmax(t))
        _checks.require(low >= 0 and high < num_steps, "t", f"timesteps in [0, {num_steps})", f"{low} to {high}")


def timesteps_of(t: Tensor, backend: str) -> Tensor:
    """Timesteps in a type that the backend reads: Triton takes those of 32 bits too."""
    return t if backend == "triton" else t.long()


_WHOLE = (torch.int64, torch.int32)


def check_noise(noise: Tensor | None, draws: Draws | DeviceDraws | None, shape: tuple[int, ...]) -> None:
    """Check that there is exactly one source of noise, of the right shape."""
    _checks.require((noise is None) != (draws is None), "noise, draws", "exactly one of the two", "neither" if draws is None else "both")
    if noise is None:
        _checks.require(isinstance(draws, (Draws, DeviceDraws)), "draws", "Draws or DeviceDraws", draws)
    else:
        _checks.tensor(noise, "noise", tuple(shape))
