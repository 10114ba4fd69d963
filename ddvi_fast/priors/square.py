"""Square prior: the perimeter of [-1, 1]^2 with noise across its edges (docs/method.md, section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.precision import as_float64
from ddvi_fast.priors.base import Prior, curve_noise, select_class
from ddvi_fast.priors.quadrature import interval_quadrature, quadrature_across, uniform_quadrature
from ddvi_fast.rng import Draws

_PERIMETER, _EDGE = 8.0, 2.0
_CORNERS = ((-1.0, 1.0), (1.0, 1.0), (1.0, -1.0), (-1.0, -1.0))  # clockwise from the top left
_ALONG = ((1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.0, 1.0))
_ACROSS = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))


class Square(Prior):
    """Uniform position on the perimeter of [-1, 1]^2, clockwise from the top left, with noise N(0, (noise_level / 50)^2) across the edge.

    Args:
        noise_level: Fifty times the standard deviation of the noise (float, default 3, the paper's "less noisy" variant).
        num_classes: Number of classes, equal stretches of the perimeter (int, default 10). A stretch can include a corner.
        corner_width: Standard deviation of a small noise along the edge (float, default 0.01). With 0 the density is zero beyond the
            corners, and a posterior that starts there has no gradient.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> prior = Square()
        >>> prior.log_prob(prior.sample(4)).shape
        torch.Size([4])
    """

    dim, noise_dim = 2, 3
    _divides_noise = True

    @_checks.typed
    def __init__(self, noise_level: float = 3.0, num_classes: int = 10, corner_width: float = 0.01) -> None:
        super().__init__()
        noise_level = _checks.width(noise_level, "noise_level")
        num_classes = _checks.integer(num_classes, "num_classes", at_least=1)
        corner_width = _checks.number(corner_width, "corner_width", at_least=0)
        self.noise_level, self.noise, self.num_classes, self.corner_width = noise_level, noise_level / 50, num_classes, corner_width
        stretches = list(_stretches(num_classes))
        kinds = {"classes": torch.int64, "edges": torch.int64, "starts": torch.float64, "ends": torch.float64}
        for (name, dtype), column in zip(kinds.items(), zip(*stretches, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(column, dtype=dtype, device="cpu"), persistent=False)  # [S] straight pieces of the classes
        frames = torch.tensor([_CORNERS, _ALONG, _ACROSS], **as_float64)
        self.register_buffer("frames", frames, persistent=False)  # [3, 4, 2]: first corner of each edge, unit vectors along it and outwards

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        along, log_along = self._nodes_along(resolution)
        across, log_across = quadrature_across(resolution, reach=40)
        points = self._place(torch.arange(4, device="cpu")[:, None, None], along.unsqueeze(1), self.noise * across)
        log_weights = log_along.unsqueeze(1) + log_across - math.log(4)
        return points.flatten(0, 2), log_weights.expand(4, -1, -1).flatten()

    def _nodes_along(self, resolution: int) -> tuple[Tensor, Tensor]:
        """Positions along an edge, smoothed ends included, and their log-weights, whose exponentials sum to 1."""
        if self.corner_width == 0:
            nodes, log_weights = uniform_quadrature(resolution)
            return _EDGE * nodes, log_weights
        positions, log_spacing = interval_quadrature(_EDGE, self.corner_width, resolution, reach=10)
        log_density = _log_normal_interval(
            torch.minimum(positions, _EDGE - positions) / self.corner_width, torch.maximum(positions, _EDGE - positions) / self.corner_width
        )
        return positions, torch.log_softmax(log_density + log_spacing, 0)

    def _noise(self, n: int, draws: Draws, device: torch.device) -> Tensor:
        return curve_noise(n, draws, device)

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        """Latents of position, noise across the edge and noise along it."""
        within, across, along = torch.special.ndtr(u[..., 0]), u[..., 1], u[..., 2]
        position = _PERIMETER * (within if labels is None else (labels + within) / self.num_classes)
        edge = (position.detach() / _EDGE).floor().clamp(max=3).nan_to_num(0.0)  # an index; the position itself stays NaN
        return self._place(edge.long(), position - _EDGE * edge + self.corner_width * along, self.noise * across)

    def _place(self, edge: Tensor, along: Tensor, across: Tensor) -> Tensor:
        """Points [.., 2] at the distance `along` edge `edge` from its first corner, and the distance `across` outwards."""
        corner, forwards, outwards = self.frames.to(along)[:, edge]
        return corner + along.unsqueeze(-1) * forwards + across.unsqueeze(-1) * outwards

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        corner, along, across = self.frames.to(z)[:, self.edges]
        offset = z.unsqueeze(-2) - corner  # [.., S, 2]
        position, height = (offset * along).sum(-1), (offset * across).sum(-1)
        noise = -0.5 * (height / self.noise).square() - 0.5 * math.log(2 * math.pi) - math.log(self.noise)
        stretches = noise + self._log_uniform(position) - math.log(_PERIMETER)
        if labels is None:
            return torch.logsumexp(stretches, -1)
        members = torch.where(self.classes.unsqueeze(0) == torch.arange(self.num_classes, device=z.device).unsqueeze(1), 0.0, -math.inf)
        return select_class(torch.logsumexp(stretches.unsqueeze(-2) + members.to(z), -1) + math.log(self.num_classes), labels)

    def _log_uniform(self, position: Tensor) -> Tensor:
        """Log-density [.., S], relative to the interior, at `position` [.., S] of each piece, whose ends are smoothed by `corner_width`."""
        starts, ends = self.starts.to(position), self.ends.to(position)
        if self.corner_width == 0:
            return torch.where((position >= starts) & (position < ends), 0.0, -math.inf).to(position)
        near = torch.minimum(position - starts, ends - position) / self.corner_width
        far = torch.maximum(position - starts, ends - position) / self.corner_width
        return _log_normal_interval(near, far)

    def _blurred(self, width: float) -> Square:
        return Square(50 * math.hypot(self.noise, width), self.num_classes, math.hypot(self.corner_width, width))


def _log_normal_interval(near: Tensor, far: Tensor) -> Tensor:
    """Compute `log(Phi(near) + Phi(far) - 1)`: the mass between ends at distances `near` <= `far`, negative beyond an end.

    It uses erfcx, because in float32 the derivative of `torch.special.log_ndtr` is inaccurate below -100, then NaN.
    """
    near, far = near / math.sqrt(2), far / math.sqrt(2)
    # Both branches get valid arguments: an infinity in the unused one would make the gradient NaN.
    outside, beyond = -near.clamp(max=0), far.clamp(min=1e-6)
    top = torch.special.erfcx(outside)
    rest = torch.exp((outside.square() - beyond.square()).clamp(max=0)) * torch.special.erfcx(beyond) / top
    tail = torch.log(top / 2) - outside.square() + torch.log1p(-rest.clamp(max=1 - 1e-6))
    inside = torch.log((torch.erf(near.clamp(min=0)) + torch.erf(beyond)) / 2)
    return torch.where(near < 0, tail, inside)


def _stretches(num_classes: int) -> Iterator[tuple[int, int, float, float]]:
    """Yield (class, edge, start, end) of the straight pieces of each class, with positions along the edge."""
    for label in range(num_classes):
        position, end = label * _PERIMETER / num_classes, (label + 1) * _PERIMETER / num_classes
        for edge in range(4):
            first, last = max(position, edge * _EDGE), min(end, (edge + 1) * _EDGE)
            if last - first > 1e-9:
                yield label, edge, first - edge * _EDGE, last - edge * _EDGE
