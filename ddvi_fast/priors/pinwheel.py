"""The pinwheel: thin curved arms around the origin (METHOD section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.priors.base import Prior, bell_nodes, normal_nodes, pick
from ddvi_fast.rng import Draws

_NEWTON_STEPS = 6
_MAX_RADIUS = 3.0  # where the twist stops growing: no arm reaches it, and exp would overflow beyond
_MIN_SLOPE = 0.05  # folds of the map lie hundreds of standard deviations from an arm


class Pinwheel(Prior):
    """`z = f R(angle_c(f_1))` with `f ~ N((1, 0), diag(radial_std^2, tangential_std^2))`, `angle_c = 2 pi c / C + rate exp(f_1)`.

    The density is that of `f` at the point that the map takes to `z`, found by Newton's method on its polar angle, over the
    map's Jacobian determinant `1 + rate exp(f_1) f_2`.

    Args:
        num_classes: C arms, each a class.
        radial_std: along an arm.
        tangential_std: across an arm.
        rate: of the twist.

    Example:
        >>> prior = Pinwheel()
        >>> prior.log_prob(prior.sample(4, Draws(0))).shape
        torch.Size([4])
    """

    dim = 2

    def __init__(self, num_classes: int = 10, radial_std: float = 0.15, tangential_std: float = 0.005, rate: float = 0.25) -> None:
        super().__init__()
        _checks.require(num_classes >= 1, "num_classes", "at least 1", num_classes)
        _checks.require(radial_std > 0 and tangential_std > 0, "radial_std, tangential_std", "positive numbers", (radial_std, tangential_std))
        self.num_classes, self.radial_std, self.tangential_std, self.rate = num_classes, radial_std, tangential_std, rate

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        along, log_along = bell_nodes(resolution)
        across, log_across = normal_nodes(7)
        labels = torch.arange(self.num_classes, dtype=torch.float64)
        first, second, label = torch.meshgrid(1 + self.radial_std * along, self.tangential_std * across, labels, indexing="ij")
        log_weights = log_along[:, None, None] + log_across[:, None] - math.log(self.num_classes) + torch.zeros(self.num_classes)
        return self._place(torch.stack((first, second), -1), label).flatten(0, 2), log_weights.flatten()

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        f = rng.normal(draws, (n, 2), rng.PRIOR + 1, device=device, dtype=torch.float64)
        spread = f.new_tensor([self.radial_std, self.tangential_std])
        return self._place(f * spread + f.new_tensor([1.0, 0.0]), labels)

    def _place(self, f: Tensor, labels: Tensor) -> Tensor:
        """The map from `f` [.., 2] in the frame of arm `labels` [..] to the plane."""
        angle = 2 * math.pi * labels / self.num_classes + self.rate * torch.exp(f[..., 0])
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.stack((f[..., 0] * cos + f[..., 1] * sin, f[..., 1] * cos - f[..., 0] * sin), -1)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        radius, phase = self._polar(z)
        phi = self._solve(radius, phase)
        first, second = radius * torch.cos(phi), radius * torch.sin(phi)
        slope = (1 + self._twist(first) * second).abs().clamp(min=_MIN_SLOPE)
        standardised = ((first - 1) / self.radial_std).square() + (second / self.tangential_std).square()
        constant = math.log(2 * math.pi * self.radial_std * self.tangential_std)
        return pick(-0.5 * standardised - constant - torch.log(slope), labels)

    def _polar(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Radius [..., 1], and [..., C]: the angle of `z` in the frame of each arm, before its twist."""
        # At the origin the angle has no derivative: look a little beside it.
        beside = torch.where(z.square().sum(-1, keepdim=True) < 1e-12, z.new_tensor([1e-6, 0.0]), z)
        arms = 2 * math.pi / self.num_classes * torch.arange(self.num_classes, device=z.device, dtype=z.dtype)
        return beside.norm(dim=-1, keepdim=True), torch.atan2(beside[..., 1:], beside[..., :1]) + arms

    def _solve(self, radius: Tensor, phase: Tensor) -> Tensor:
        """The angle of `f` [..., C]: the root of `phi = phase + rate exp(radius cos phi)` nearest to the arm's axis."""
        with torch.no_grad():
            phi = _wrap(phase + self._twist(radius))
            for _ in range(_NEWTON_STEPS):
                phi = _wrap(phi - self._residual(phi, radius, phase) / self._slope(phi, radius))
            slope = self._slope(phi, radius)
        # One more step with a fixed slope carries the derivative of the root, by the implicit function theorem.
        return phi - self._residual(phi, radius, phase) / slope

    def _residual(self, phi: Tensor, radius: Tensor, phase: Tensor) -> Tensor:
        return _wrap(phi - phase - self._twist(radius * torch.cos(phi)))

    def _slope(self, phi: Tensor, radius: Tensor) -> Tensor:
        return (1 + self._twist(radius * torch.cos(phi)) * radius * torch.sin(phi)).clamp(min=_MIN_SLOPE)

    def _twist(self, first: Tensor) -> Tensor:
        return self.rate * torch.exp(first.clamp(max=_MAX_RADIUS))

    def _blurred(self, width: float) -> Pinwheel:
        return Pinwheel(self.num_classes, math.hypot(self.radial_std, width), math.hypot(self.tangential_std, width), self.rate)


def _wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi]."""
    return angle - 2 * math.pi * torch.round(angle.detach() / (2 * math.pi))
