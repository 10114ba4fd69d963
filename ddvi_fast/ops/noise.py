"""Forward noising of latents."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import NoiseSchedule


def add_noise(x0: Tensor, t: Tensor, schedule: NoiseSchedule, *, noise: Tensor | None = None, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
    """Draw `y_t ~ r(y_t | y_0)`: `y_t = sqrt(alpha_bar_t) x0 + deviation_t noise` (METHOD section 1).

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
    signal, deviation = (column.to(x0) for column in (schedule.alpha_bars.sqrt(), schedule.noise_variances.sqrt()))
    return _backend.operation("noise", x0, t, signal, deviation, noise).add_noise(x0, t, signal, deviation, noise, draws)


def check_latents(value: Tensor, argument: str) -> None:
    """Latents are floating-point [..., N, D] with D of at least 1."""
    _checks.tensor(value, argument)
    _checks.require(value.dim() >= 2 and value.shape[-1] >= 1, argument, "shape [..., N, D]", value)


def check_timesteps(t: Tensor, rows: torch.Size, num_steps: int) -> None:
    """Timesteps are integers [..., N] in [0, T)."""
    _checks.tensor(t, "t", floating=False)
    _checks.require(t.dtype == torch.int64 and t.shape == rows, "t", f"an int64 tensor of shape {list(rows)}", t)
    # Reading values back from a device would stall it, so only host tensors have theirs checked.
    if t.device.type == "cpu" and t.numel():
        _checks.require(bool(t.min() >= 0 and t.max() < num_steps), "t", f"timesteps in [0, {num_steps})", f"{int(t.min())} to {int(t.max())}")


def check_noise(noise: Tensor | None, draws: Draws | None, shape: tuple[int, ...]) -> None:
    """Exactly one source of noise, of the right shape."""
    _checks.require((noise is None) != (draws is None), "noise, draws", "exactly one of the two", "both" if draws else "neither")
    if noise is not None:
        _checks.tensor(noise, "noise", tuple(shape))
