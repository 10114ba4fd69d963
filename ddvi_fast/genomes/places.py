"""Posteriors of the places of people: mixtures of Gaussians, their densities, regions of highest density and the areas of these."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.rng import Draws

_WIDE = 0.05  # weight of the further Gaussian
_POINTS = 1 << 22  # pairs of a point and a Gaussian at a time


@dataclass(frozen=True)
class Places:
    """Posterior of the place of each of N people: S Gaussians of equal weight, in units of the first component's standard deviation.

    One more Gaussian may have a twentieth of the weight, which gives places density that lie between the others by chance.

    Args:
        people: Names of the people, N.
        centres: Means of the Gaussians, float64 [S, N, 2].
        factor: Lower triangular factors of their covariances, float64 [N, 2, 2].
        called: Number of calls of each person, float64 [N].
        wide: Mean [N, 2] and lower triangular factor [N, 2, 2] of the further Gaussian, float64, or None (default) for none.

    Example:
        >>> places = Places(np.array(["a"]), torch.zeros(1, 1, 2).double(), torch.eye(2).double().unsqueeze(0), torch.ones(1))
        >>> round(float(places.log_prob(torch.zeros(1, 2))[0]) + math.log(2 * math.pi), 6), places.sample(5).shape
        (0.0, (5, 1, 2))
    """

    people: np.ndarray
    centres: Tensor
    factor: Tensor
    called: Tensor
    wide: tuple[Tensor, Tensor] | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean places, float64 [N, 2]."""
        mean = self.centres.mean(0)
        return (mean if self.wide is None else (1 - _WIDE) * mean + _WIDE * self.wide[0]).numpy()

    @property
    def spread(self) -> np.ndarray:
        """Standard deviations of the places, float64 [N, 2]."""
        square = self.factor.square().sum(2) + self.centres.square().mean(0)
        if self.wide is not None:
            square = (1 - _WIDE) * square + _WIDE * (self.wide[1].square().sum(2) + self.wide[0].square())
        return (square - torch.from_numpy(self.mean).square()).clamp_min(0).sqrt().numpy()

    def sample(self, num_samples: int = 400, seed: int = 0) -> np.ndarray:
        """Draw places, float64 [num_samples, N, 2].

        Args:
            num_samples: Number of samples of each person (int, default 400).
            seed: Seed of the samples (int, default 0).
        """
        num_samples = _checks.integer(num_samples, "num_samples", 1)
        return self._drawn(slice(None), num_samples, Draws(_checks.integer(seed, "seed", 0))).numpy()

    def log_prob(self, places: Tensor | np.ndarray) -> np.ndarray:
        """Log-densities in nats of places [N, 2], one of each person, float64 [N].

        Raises:
            InputError: `places` do not have the shape [N, 2].
        """
        points = self._points(places)
        return np.concatenate([self._log_density(part, points[None, part])[0].numpy() for part in self._parts(1)])

    def credibility(self, places: Tensor | np.ndarray, num_samples: int = 500, seed: int = 0) -> np.ndarray:
        """Probability of the smallest region of highest density that contains a place of each person, float64 [N].

        The region of probability 0.9 contains the places whose credibility is at most 0.9.

        Args:
            places: Places [N, 2].
            num_samples: Number of samples by which the probability is estimated (int, default 500).
            seed: Seed of the samples (int, default 0).

        Raises:
            InputError: `places` do not have the shape [N, 2].
        """
        return self.regions(places, (0.5,), num_samples, seed)[0]

    def area(self, level: float = 0.9, num_samples: int = 500, seed: int = 0) -> np.ndarray:
        """Area of the region of highest density of probability `level` (float, default 0.9) of each person, float64 [N]; see `credibility`.

        Raises:
            InputError: `level` is not between 0 and 1.
        """
        return self.regions(self.centres[0], (_checks.number(level, "level", above=0, below=1),), num_samples, seed)[1][0]

    def regions(self, places: Tensor | np.ndarray, levels: tuple[float, ...], num_samples: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Credibilities [N] of places [N, 2], and areas [L, N] of the regions of the probabilities `levels`.

        The area of a region is the mean over samples in it of the inverse of their density.
        """
        points, num_samples = self._points(places), _checks.integer(num_samples, "num_samples", 2)
        found, areas, draws = [], [], Draws(_checks.integer(seed, "seed", 0))
        for part in self._parts(num_samples):
            log_densities = self._log_density(part, self._drawn(part, num_samples, draws.advance(part.start)))
            found.append((log_densities > self._log_density(part, points[None, part])).double().mean(0).numpy())
            areas.append((_densest(log_densities, levels) * torch.exp(-log_densities)).mean(1).numpy())
        return np.concatenate(found), np.concatenate(areas, 1)

    def extents(self, level: float = 0.9, num_samples: int = 500, seed: int = 0) -> np.ndarray:
        """Least and largest coordinates in the region of highest density of probability `level` of each person, float64 [N, 2, 2].

        The last axis has both ends, which are those of samples in the region, and the one before it the coordinates.

        Args:
            level: Probability of the region (float, default 0.9).
            num_samples: Number of samples of each person (int, default 500).
            seed: Seed of the samples (int, default 0).

        Raises:
            InputError: `level` is not between 0 and 1.
        """
        level, num_samples = _checks.number(level, "level", above=0, below=1), _checks.integer(num_samples, "num_samples", 2)
        found, draws = [], Draws(_checks.integer(seed, "seed", 0))
        for part in self._parts(num_samples):
            drawn = self._drawn(part, num_samples, draws.advance(part.start))
            outside = ~_densest(self._log_density(part, drawn), (level,))[0].unsqueeze(2)
            ends = drawn.masked_fill(outside, math.inf).amin(0), drawn.masked_fill(outside, -math.inf).amax(0)
            found.append(torch.stack(ends, 2).numpy())
        return np.concatenate(found)

    def _points(self, places: Tensor | np.ndarray) -> Tensor:
        points = torch.as_tensor(places, dtype=torch.float64, device="cpu")
        _checks.require(points.shape == (len(self.people), 2), "places", f"shape [{len(self.people)}, 2]", f"shape {list(points.shape)}")
        return points

    def _parts(self, points: int) -> list[slice]:
        """Slices of the people whose pairs of points and Gaussians fit into memory."""
        count, step = len(self.people), max(1, _POINTS // (points * len(self.centres)))
        return [slice(first, min(first + step, count)) for first in range(0, count, step)]

    def _drawn(self, part: slice, num_samples: int, draws: Draws) -> Tensor:
        """Samples [num_samples, n, 2] of some people."""
        factor, centres = self.factor[part], self.centres[:, part]
        which = rng.integers(draws, (num_samples, len(factor)), len(centres), rng.PRIOR)
        chosen = torch.gather(centres, 0, which.unsqueeze(2).expand(-1, -1, 2))
        noise = rng.normal(draws, tuple(chosen.shape), rng.NOISE, dtype=torch.float64)
        drawn = chosen + torch.einsum("nij,snj->sni", factor, noise)
        if self.wide is None:
            return drawn
        far = self.wide[0][part] + torch.einsum("nij,snj->sni", self.wide[1][part], noise)
        return torch.where(rng.uniform(draws, (num_samples, len(factor), 1), rng.CLASSES) < _WIDE, far, drawn)

    def _log_density(self, part: slice, points: Tensor) -> Tensor:
        """Log-densities [P, n] at points [P, n, 2] of some people; distances are taken in single precision, in the frame of a Gaussian."""
        factor, first = self.factor[part], self.centres[0, part]
        away = undo(factor, points - first).float().unsqueeze(1) - undo(factor, self.centres[:, part] - first).float()  # [P, S, n, 2]
        log_q = torch.logsumexp(-0.5 * away.square().sum(-1), 1).double() - math.log(len(self.centres)) + _peak(factor)
        if self.wide is None:
            return log_q
        centre, factor = (value[part] for value in self.wide)
        far = -0.5 * undo(factor, points - centre).square().sum(-1) + _peak(factor)
        return torch.logaddexp(log_q + math.log1p(-_WIDE), far + math.log(_WIDE))


def _densest(log_densities: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Whether samples with log-densities [S, n] are in the regions of highest density of the probabilities `levels`, bool [L, S, n]."""
    least = torch.quantile(log_densities, 1 - torch.tensor(levels, dtype=torch.float64, device="cpu"), dim=0)
    return log_densities >= least.unsqueeze(1)


def undo(factor: Tensor, difference: Tensor) -> Tensor:
    """Coordinates [.., n, 2] in the frames of Gaussians with the factors [n, 2, 2] of differences from their means [.., n, 2]."""
    return torch.linalg.solve_triangular(factor, difference.unsqueeze(-1), upper=False).squeeze(-1)


def _peak(factor: Tensor) -> Tensor:
    """Log-densities [n] of Gaussians at their means."""
    return -math.log(2 * math.pi) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
