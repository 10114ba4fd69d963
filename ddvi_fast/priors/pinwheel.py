"""Pinwheel prior: narrow curved arms around the origin (docs/method.md, section 5)."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks, _operator
from ddvi_fast.dense import on_device
from ddvi_fast.precision import as_float64
from ddvi_fast.priors.base import Prior, PriorSample, select_class
from ddvi_fast.priors.quadrature import normal_quadrature, quadrature_across
from ddvi_fast.rng import Draws

_MIN_SLOPE = 0.12  # smallest slope of the map of angles up to the core radius; at 0 the map would fold
_OUTER_RADIUS = 2.5  # radius beyond which the arms are straight, since exp would overflow
_TABLE_SIZE = 65  # angles of the table in which roots are bracketed


class Pinwheel(Prior):
    """Pinwheel `z = f R(angle_c(f_1))`, `f ~ N((1, 0), diag(radial_std^2, tangential_std^2))`, `angle_c = 2 pi c / C + rate exp(f_1)`.

    The map preserves the radius and takes the polar angle phi of `f` to `g(phi) = phi - rate exp(radius cos phi)` minus the arm's angle.
    The density is that of `f` at the root of `g`, divided by the Jacobian determinant `g'(phi) = 1 + rate exp(f_1) f_2`.

    Beyond radius 1.68 this map would fold and the density would have poles. Beyond 1.6, four standard deviations out, the winding is
    therefore constant across an arm, and beyond 2.5 the arms are straight. Every point then has one preimage per arm, and the density is
    finite everywhere. Samples and density use the same map, which moves samples by less than 1% of the arm's width.

    Args:
        num_classes: Number of arms, each a class (int, default 10).
        radial_std: Standard deviation along an arm (float, default 0.15).
        tangential_std: Standard deviation across an arm (float, default 0.005).
        rate: Rate of the winding (float, default 0.25).

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> prior = Pinwheel()
        >>> prior.log_prob(prior.sample(4)).shape
        torch.Size([4])
    """

    dim = noise_dim = 2

    @_checks.typed
    def __init__(self, num_classes: int = 10, radial_std: float = 0.15, tangential_std: float = 0.005, rate: float = 0.25) -> None:
        super().__init__()
        num_classes = _checks.integer(num_classes, "num_classes", at_least=1)
        radial_std, tangential_std = _checks.width(radial_std, "radial_std"), _checks.width(tangential_std, "tangential_std")
        rate = _checks.number(rate, "rate", at_least=0)
        self.num_classes, self.radial_std, self.tangential_std, self.rate = num_classes, radial_std, tangential_std, rate
        grid = torch.linspace(-math.pi, math.pi, _TABLE_SIZE, **as_float64)
        self.register_buffer("table_phi", grid, persistent=False)
        radii = torch.linspace(0, _OUTER_RADIUS, 1001, **as_float64)
        lowest = (1 + radii[:, None] * grid.sin() * rate * torch.exp(radii[:, None] * grid.cos())).amin(1)
        self.core_radius = radii[lowest >= _MIN_SLOPE].max().item()

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        radial, log_radial = normal_quadrature(resolution, reach=15)
        tangential, log_tangential = quadrature_across(resolution, reach=200)
        labels = torch.arange(self.num_classes, **as_float64)
        first, second, label = torch.meshgrid(1 + self.radial_std * radial, self.tangential_std * tangential, labels, indexing="ij")
        log_weights = log_radial[:, None, None] + log_tangential[:, None] - math.log(self.num_classes) + torch.zeros(self.num_classes, **as_float64)
        return self._place(torch.stack((first, second), -1), label).flatten(0, 2), log_weights.flatten()

    def _sample_sets(self, n: int, num_sets: int, draws: Draws, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        device = torch.device(device)
        if not self._samples_on(device, dtype):
            return super()._sample_sets(n, num_sets, draws, dtype, device)
        return _kernels().sample(draws.state(device), draws.offset, (num_sets, n), self.num_classes, self._constants)[0]

    def _drawn(self, n: int, draws: Draws, dtype: torch.dtype, device: torch.device) -> PriorSample | None:
        if not self._samples_on(device, dtype):
            return None
        made = _kernels().sample(draws.state(device), draws.offset, (1, n), self.num_classes, self._constants, True)
        return PriorSample(*(part[0] for part in made))

    def _samples_on(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether Triton draws samples on a device."""
        return dtype == torch.float32 and not _operator.needs_dispatch() and _backend.fused(device) == "triton"

    @property
    def _constants(self) -> tuple[float, float, float, float, float]:
        """The constants of the kernels."""
        return self.radial_std, self.tangential_std, self.rate, self.core_radius, _OUTER_RADIUS

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        if u.dtype == torch.float32 and labels.dtype == torch.int64 and on_device(u):
            return _fused_push(u.contiguous(), labels.contiguous(), self)
        return self._pushed(u, labels)

    def _pushed(self, u: Tensor, labels: Tensor) -> Tensor:
        """The map in plain PyTorch."""
        return self._place(torch.stack((1 + self.radial_std * u[..., 0], self.tangential_std * u[..., 1]), -1), labels)

    def _place(self, f: Tensor, labels: Tensor) -> Tensor:
        """Map `f` [.., 2] in the frame of arm `labels` [..] to latents [.., 2]."""
        radius, phi = torch.hypot(f[..., 0], f[..., 1]), torch.atan2(f[..., 1], f[..., 0])
        winding = self._winding(radius.clamp(max=self.core_radius) * torch.cos(phi)) + self._outer_winding(radius)
        labels = labels if labels.is_floating_point() else labels.float()  # a product with a whole number has torch's default type
        theta = phi - winding - 2 * math.pi * labels / self.num_classes
        return torch.stack((radius * torch.cos(theta), radius * torch.sin(theta)), -1)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        radius, phase = self._polar(z)
        core = radius.clamp(max=self.core_radius)
        phi = self._solve(core, phase + self._outer_winding(radius))
        first, second = radius * torch.cos(phi), radius * torch.sin(phi)
        standardised = ((first - 1) / self.radial_std).square() + (second / self.tangential_std).square()
        constant = math.log(2 * math.pi * self.radial_std * self.tangential_std)
        return select_class(-0.5 * standardised - constant - torch.log(self._slope(phi, core)), labels)

    def _polar(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Radius [..., 1] of `z`, and its angle [..., C] in the frame of each arm before the winding."""
        # The angle has no derivative at the origin, so that point is moved slightly.
        at_origin = z.square().sum(-1) < 1e-12
        moved = torch.stack((torch.where(at_origin, 1e-6, z[..., 0]), torch.where(at_origin, 0.0, z[..., 1])), -1)
        arms = 2 * math.pi / self.num_classes * torch.arange(self.num_classes, device=z.device, dtype=z.dtype)
        return moved.norm(dim=-1, keepdim=True), torch.atan2(moved[..., 1:], moved[..., :1]) + arms

    def _solve(self, core: Tensor, phase: Tensor) -> Tensor:
        """The angle of `f` [..., C]: the root of `g(phi) = phase` modulo a turn; `core` is [..., 1]."""
        with torch.no_grad():
            table = self.table_phi.to(phase) - self._winding(core * torch.cos(self.table_phi.to(phase)))
            turns = -2 * math.pi * torch.floor((phase - table[..., :1]) / (2 * math.pi))
            phi = self._interpolate(table, phase + turns)
            for _ in range(2):
                phi = self._newton(phi, core, phase + turns)
        # Two Newton steps at the root have its first three derivatives, so that gradients can be differentiated again.
        return self._newton(self._newton(phi, core, phase + turns), core, phase + turns)

    def _interpolate(self, table: Tensor, goal: Tensor) -> Tensor:
        """The angle at which a `table` [..., K] of g over `table_phi` reaches `goal` [..., C], by linear interpolation."""
        grid = self.table_phi.to(goal)
        right = torch.searchsorted(table, goal).clamp(1, _TABLE_SIZE - 1)
        below, above = table.gather(-1, right - 1), table.gather(-1, right)
        return grid[right - 1] + (goal - below) / (above - below) * (grid[1] - grid[0])

    def _newton(self, phi: Tensor, core: Tensor, goal: Tensor) -> Tensor:
        return phi - (phi - self._winding(core * torch.cos(phi)) - goal) / self._slope(phi, core)

    def _slope(self, phi: Tensor, core: Tensor) -> Tensor:
        return 1 + self._winding(core * torch.cos(phi)) * core * torch.sin(phi)

    def _outer_winding(self, radius: Tensor) -> Tensor:
        """Winding beyond the core. It depends only on the radius, so it preserves areas."""
        return self._winding(radius.clamp(self.core_radius, _OUTER_RADIUS)) - self.rate * math.exp(self.core_radius)

    def _winding(self, first: Tensor) -> Tensor:
        return self.rate * torch.exp(first)

    def _blurred(self, width: float) -> Pinwheel:
        return Pinwheel(self.num_classes, math.hypot(self.radial_std, width), math.hypot(self.tangential_std, width), self.rate)


def _kernels() -> ModuleType:
    return _backend.implementation("triton", "pinwheel")


def _forward(u: Tensor, labels: Tensor, prior: Pinwheel) -> Tensor:
    return _kernels().forward(u, labels, prior.num_classes, prior._constants)


def _backward(inputs, results, upstream, needed):
    u, labels, prior = inputs
    return _kernels().backward(*upstream, u, labels, prior.num_classes, prior._constants), None


_fused_push = _operator.Part("PinwheelPush", lambda u, labels, prior: prior._pushed(u, labels), _forward, _backward)
