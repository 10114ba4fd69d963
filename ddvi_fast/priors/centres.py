"""Clustering prior: copies of a base prior around learned centres (docs/method.md, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.priors.base import Prior, select_class
from ddvi_fast.priors.gaussian import Gaussian
from ddvi_fast.rng import Draws

ETA = 1.5  # distance below which two centres repel each other
REACH = 2.5  # bound of the centres' coordinates
BASE_SCALE = 0.125  # standard deviation of the paper's Gaussian base prior


class Centres(Prior):
    """Mixture of equally likely copies of a base prior, scaled by `scale` and shifted to `num_centres` learned centres.

    `p(z | c) = p_base((z - mean_c) / scale) / scale^D`; component `c` is class `c`. A centre is `2.5 tanh(raw_c)`, so that its coordinates
    stay in [-2.5, 2.5].

    Args:
        base: Prior around each centre. Default: the Gaussian of standard deviation 0.125.
        num_centres: Number of centres, C (int, default 20).
        scale: Factor on the base prior (float, default 1).
        learnable: Train the centres (bool, default True).
        draws: Position of the initial centres in the random stream (default `Draws(0)`). They are spread over the square.
        raw: Parameter [C, D] of the centres, to share that of another prior. Default: a new one.

    Raises:
        InputError: If the base prior has no density, or if an argument is out of range.

    Example:
        >>> prior = Centres(num_centres=20)
        >>> prior.centres.shape, prior.sample(3).shape
        (torch.Size([20, 2]), torch.Size([3, 2]))
    """

    @_checks.typed
    def __init__(
        self, base: Prior | None = None, num_centres: int = 20, scale: float = 1.0, learnable: bool = True, draws: Draws = Draws(0),
        raw: nn.Parameter | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        num_centres = _checks.integer(num_centres, "num_centres", at_least=1)
        scale = _checks.width(scale, "scale")
        self.base = Gaussian(2, BASE_SCALE) if base is None else base
        self.base.require_density()
        self.scale, self.num_classes, self.dim = scale, num_centres, self.base.dim
        self.noise_dim = self.base.joint_noise_dim
        if raw is not None:
            _checks.tensor(_checks.instance(raw, nn.Parameter, "raw", "a torch.nn.Parameter"), "raw", (num_centres, self.dim))
        self.raw = nn.Parameter(torch.atanh(_spread(num_centres, self.dim, draws)), requires_grad=learnable) if raw is None else raw

    @property
    def centres(self) -> Tensor:
        """The centres [C, D]."""
        return REACH * torch.tanh(self.raw)

    def crowding(self, eta: float = ETA) -> Tensor:
        """Compute for each centre the sum of `max(0, eta - distance)` over the other centres, [C]."""
        distances = (self.centres.unsqueeze(0) - self.centres.unsqueeze(1)).square().sum(-1)
        itself = torch.eye(self.num_classes, dtype=torch.bool, device=distances.device)
        # The square root has no finite gradient at distance 0.
        apart = torch.where(itself, eta**2, distances.clamp(min=1e-12)).sqrt()
        return torch.relu(eta - apart).sum(-1)

    def nearest(self, z: Tensor) -> Tensor:
        """Return the index of the centre nearest to each latent [..., D], int64 [...]."""
        return torch.cdist(z, self.centres.to(z)).argmin(-1)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Compute `p(c | z)` [..., C] of latents [..., D], differentiable in latents and centres."""
        return self.base.log_prob(self._centred(z)).softmax(-1)

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        nodes, log_weights = self.base.integration_nodes(max(2, resolution // 5))
        centred = self.centres.detach().double().cpu().unsqueeze(1) + self.scale * nodes
        return centred.flatten(0, 1), log_weights.repeat(self.num_classes) - math.log(self.num_classes)

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        return self.centres.to(device)[labels] + self.scale * self.base.sample(n, draws.importance(1), device=device)

    def _noise(self, n: int, draws: Draws, device: torch.device) -> Tensor:
        # The base prior draws its own class, at another place than the class of the centre.
        return self.base._joint_noise(n, draws.importance(1), device)

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return self.centres.to(u)[labels] + self.scale * self.base.push(u)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return select_class(self.base.log_prob(self._centred(z)) - self.dim * math.log(self.scale), labels)

    def _centred(self, z: Tensor) -> Tensor:
        """Latents [..., D] in the coordinates of the base prior around each centre, [..., C, D]."""
        return (z.unsqueeze(-2) - self.centres.to(z)) / self.scale

    def _blurred(self, width: float) -> Centres:
        # The same parameter, so that the centres get their gradient through the blur.
        return Centres(self.base.blurred(width / self.scale), self.num_classes, self.scale, raw=self.raw)


def _spread(count: int, dim: int, draws: Draws) -> Tensor:
    """Initial centres [count, dim] in (-1, 1): each the candidate farthest from all previous ones."""
    candidates = 1.8 * rng.uniform(draws, (50 * count, dim), rng.INITIAL) - 0.9
    chosen = candidates[:1]
    for _ in range(count - 1):
        farthest = torch.cdist(candidates, chosen).amin(1).argmax()
        chosen = torch.cat((chosen, candidates[farthest : farthest + 1]))
    return chosen
