"""Forward noising `y_t = signal_t x_0 + deviation_t noise`."""

from __future__ import annotations

from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.rng import DeviceDraws, Draws


def add_noise(
    x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor | None, draws: Draws | DeviceDraws | None
) -> tuple[Tensor, Tensor]:
    """Noise `x0` [..., N, D] to 0-based step `t` [..., N]; `signal` and `deviation` are [T]. Returns `(y_t, noise)`."""
    if noise is None:
        noise = rng.normal(draws, x0.shape, rng.NOISE, device=x0.device, dtype=x0.dtype)
    return signal[t].unsqueeze(-1) * x0 + deviation[t].unsqueeze(-1) * noise, noise
