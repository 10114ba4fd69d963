"""Swiss roll prior: a spiral with isotropic noise (docs/method.md, section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.precision import as_float64
from ddvi_fast.priors.base import Prior, curve_noise, select_class
from ddvi_fast.priors.quadrature import normal_grid, quadrature_across, uniform_quadrature
from ddvi_fast.rng import Draws

_TURNS = 4.5 * math.pi
_RADIUS = 3.0
_SPACING = 0.4  # spacing of quadrature nodes in units of the noise, at which Gauss-Legendre is exact to float32
_LENGTH = 0.5 * _RADIUS * _TURNS + _RADIUS  # upper bound of the length of the curve


class SwissRoll(Prior):
    """Spiral of radius `3 sqrt(u)` and angle `4.5 pi sqrt(u)`, `u` uniform on [0, 1], with isotropic noise; class `c` has `u` in `[c/C, (c+1)/C)`.

    The density is the noise integrated along the curve. Without noise there is none, and `log_prob` raises `InputError`.

    Args:
        noise: Standard deviation of the noise (float, default 0; 0.1 in ``swiss_roll_noisy``).
        num_classes: Number of classes, C (int, default 10).

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> prior = SwissRoll(noise=0.1)
        >>> prior.log_prob(prior.sample(4)).shape
        torch.Size([4])
    """

    dim = 2
    _divides_noise = True

    @_checks.typed
    def __init__(self, noise: float = 0.0, num_classes: int = 10) -> None:
        super().__init__()
        noise = _checks.number(noise, "noise", at_least=0)
        num_classes = _checks.integer(num_classes, "num_classes", at_least=1)
        self.noise, self.num_classes, self.noise_dim = noise, num_classes, 3 if noise > 0 else 1
        if noise > 0:
            nodes = math.ceil(_LENGTH / num_classes / (_SPACING * noise)) + 8
            points, log_weights = self._curve_nodes(nodes)
            self.register_buffer("curve", points, persistent=False)  # [C, M, 2]
            self.register_buffer("log_weights", log_weights, persistent=False)  # [C, M]

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        points, log_weights = self._curve_nodes(max(8, resolution // 4))
        if self.noise == 0:
            return points.flatten(0, 1), log_weights.flatten() - math.log(self.num_classes)
        grid, log_grid = normal_grid(2, quadrature_across(max(1, resolution // 2), reach=25))
        nodes = points.unsqueeze(2) + self.noise * grid
        return nodes.flatten(0, 2), (log_weights.unsqueeze(2) + log_grid).flatten() - math.log(self.num_classes)

    def _curve_nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Nodes [C, count, 2] on the curve of each class, and their log-weights [C, count], whose exponentials sum to 1 per class."""
        nodes, log_weights = uniform_quadrature(count)
        edges = torch.sqrt(torch.arange(self.num_classes + 1, **as_float64) / self.num_classes)
        width = (edges[1:] - edges[:-1]).unsqueeze(1)
        root = edges[:-1].unsqueeze(1) + width * nodes
        # root = sqrt(u) has density 2 root, and a class has 1/C of its mass.
        return _spiral(root), log_weights + torch.log(2 * root * width * self.num_classes)

    def _noise(self, n: int, draws: Draws, device: torch.device) -> Tensor:
        return curve_noise(n, draws, device)[:, : self.noise_dim]

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        """Latents of the position on the curve and the noise, if there is any."""
        points = _spiral(self._root(u[..., 0], labels))
        return points if self.noise == 0 else points + self.noise * u[..., 1:]

    def _root(self, u: Tensor, labels: Tensor | None) -> Tensor:
        """Square root of the position in [0, 1] on the curve, finite with its gradient where `Phi(u)` underflows."""
        first = _root_of_probability(u)
        if labels is None:
            return first
        later = torch.sqrt(labels.clamp(min=1) + torch.special.ndtr(u))
        return torch.where(labels == 0, first, later) / math.sqrt(self.num_classes)

    def require_density(self) -> None:
        """Raise `InputError` if `noise` is 0."""
        hint = "take noise=0.1, the swiss_roll_noisy prior"
        _checks.require(self.noise > 0, "prior", "a density, which the noiseless swiss roll does not have", "noise = 0", hint)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        nodes = self.curve.to(z).flatten(0, 1)
        squared = (z.unsqueeze(-2) - nodes).square().sum(-1)
        each = squared / (-2 * self.noise**2) + self.log_weights.to(z).flatten() - math.log(2 * math.pi) - 2 * math.log(self.noise)
        if labels is None:
            return torch.logsumexp(each, -1) - math.log(self.num_classes)
        return select_class(torch.logsumexp(each.unflatten(-1, (self.num_classes, -1)), -1), labels)

    def _blurred(self, width: float) -> SwissRoll:
        return SwissRoll(math.hypot(self.noise, width), self.num_classes)


def _spiral(root: Tensor) -> Tensor:
    """Return the points [.., 2] of the curve at `root = sqrt(u)` [..]."""
    return _RADIUS * root.unsqueeze(-1) * torch.stack((torch.cos(_TURNS * root), torch.sin(_TURNS * root)), -1)


def _root_of_probability(u: Tensor) -> Tensor:
    """Compute `sqrt(Phi(u))`. In the lower tail it is half the exponent, by erfcx, since the derivative of `log_ndtr` is inaccurate in float32."""
    tail = (-u).clamp(min=0) / math.sqrt(2)
    lower = torch.sqrt(torch.special.erfcx(tail) / 2) * torch.exp(-0.5 * tail.square())
    return torch.where(u < 0, lower, torch.sqrt(torch.special.ndtr(u.clamp(min=0))))
