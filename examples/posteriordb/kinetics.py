"""Concentration of a drug in one compartment: first-order absorption, Michaelis-Menten elimination."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, constraints

_STEPS = 10  # steps between two measurements
_GAMMA = 1 - math.sqrt(0.5)  # diagonal of the two-stage method of order 2, which is stable for stiff equations


class OneCompartment:
    """`dC/dt = D k_a exp(-k_a t) / V - V_m C / (V (K_m + C))` from `C(0) = 0`, with lognormal measurements."""

    support = dict.fromkeys(("k_a", "K_m", "V_m", "sigma"), constraints.positive)

    def __init__(self, x: Mapping[str, Tensor]) -> None:
        self.times, self.measured = x["times"].tolist(), x["C_hat"]
        self.dose, self.volume = float(x["D"]) / float(x["V"]), float(x["V"])

    def concentrations(self, z: Mapping[str, Tensor]) -> Tensor:
        """Solve the equation by a diagonally implicit Runge-Kutta method, and return concentrations [K, times], float64.

        A stage `c = base + h (dose - v c / (K_m + c))` is a quadratic equation, whose positive root is exact.
        """
        rate, half, most = (z[name].double() for name in ("k_a", "K_m", "V_m"))
        most = most / self.volume

        def stage(base: Tensor, time: float, step: float) -> tuple[Tensor, Tensor]:
            absorbed = self.dose * rate * torch.exp(-rate * time)
            known = base + step * absorbed
            linear = half + step * most - known
            root = torch.sqrt(linear.square() + 4 * half * known)
            # The root without cancellation, on either side.
            value = torch.where(linear > 0, 2 * half * known / (root + linear.clamp(min=0)), 0.5 * (root - linear))
            return value, absorbed - most * value / (half + value)

        now, at, found = torch.zeros_like(rate), 0.0, []
        for until in self.times:
            step = (until - at) / _STEPS
            for number in range(_STEPS):
                time = at + number * step
                _, first = stage(now, time + _GAMMA * step, _GAMMA * step)
                now, _ = stage(now + (1 - _GAMMA) * step * first, time + step, _GAMMA * step)
            at = until
            found.append(now)
        return torch.stack(found, -1)

    def log_joint(self, x: Any, z: Mapping[str, Tensor]) -> Tensor:
        log_prior = sum(Cauchy(0, 1).log_prob(z[name].double()) for name in self.support)
        sigma = z["sigma"].double().unsqueeze(-1)
        errors = (self.measured / self.concentrations(z)).log() / sigma
        return log_prior - (sigma.log() + 0.5 * errors.square()).sum(-1)

    def reported(self, z: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([z[name] for name in self.support], -1)

    def parameters(self, reported: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.support, reported.unbind(-1), strict=True))
