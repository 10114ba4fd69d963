"""Simulation-based calibration: ranks of true parameters among posterior samples (Talts et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.standardization import Columns

LEVELS = (0.5, 0.8, 0.9)
JOINT = "joint"
_BINS = 20


@dataclass(frozen=True, repr=False)
class Diagnostics:
    """Ranks of true parameters among posterior samples, which are uniform from 0 to L for a calibrated posterior (Talts et al. 2018).

    Args:
        names: Names of the parameters, then ``joint``: the rank of the distance of the truth from a random point among those of the samples
            (Lemos et al. 2023).
        ranks: Ranks, int64 [M, names].
        num_samples: Posterior samples per truth, L (int).

    Example:
        >>> truth, draws = torch.randn(400, 1), torch.randn(99, 400, 1)
        >>> diagnostics = Diagnostics.of(truth, draws, ["mu"])
        >>> abs(diagnostics.coverage(0.8)["mu"] - 0.8) < 4 * diagnostics.standard_error(0.8)
        True
    """

    names: list[str]
    ranks: Tensor
    num_samples: int

    @classmethod
    def of(cls, truth: Tensor, draws: Tensor, names: list[str]) -> Diagnostics:
        """Compute the ranks of true parameters.

        Args:
            truth: True parameters [M, D], M >= 2.
            draws: Posterior samples [L, M, D].
            names: Names of the D parameters.

        Raises:
            InputError: If the shapes do not fit.
        """
        fits = draws.dim() == 3 and draws.shape[1:] == truth.shape and len(names) == truth.shape[1]
        _checks.require(fits, "draws", f"shape [L, {', '.join(map(str, truth.shape))}]", draws)
        _checks.require(len(truth) >= 2, "truth", "at least 2 rows", truth)
        ranks = (draws < truth).sum(0)
        scale = Columns.of(truth, robust=False).scale.to(truth)
        # Distances are from the truth of another row, which is independent of the data of this one.
        points = truth.roll(1, 0)
        distances, distance = ((draws - points) / scale).norm(dim=-1), ((truth - points) / scale).norm(dim=-1)
        joint = (distances < distance).sum(0)
        return cls([*names, JOINT], torch.cat((ranks, joint.unsqueeze(1)), 1), len(draws))

    def coverage(self, level: float) -> dict[str, float]:
        """Return the fraction of truths in the posterior's `level` region by name: central intervals; for ``joint`` the smallest distances."""
        middle = (self.ranks + 0.5) / (self.num_samples + 1)
        inside = (middle - 0.5).abs() <= level / 2
        inside[:, -1] = middle[:, -1] <= level
        return dict(zip(self.names, inside.double().mean(0).tolist(), strict=True))

    def nominal(self, level: float) -> float:
        """Return the expected coverage of a calibrated posterior: `level` up to the discreteness of the ranks."""
        middle = (torch.arange(self.num_samples + 1, dtype=torch.float64, device="cpu") + 0.5) / (self.num_samples + 1)
        return float(((middle - 0.5).abs() <= level / 2).double().mean())

    def standard_error(self, level: float) -> float:
        """Return the standard error of `coverage` for a calibrated posterior."""
        nominal = self.nominal(level)
        return math.sqrt(nominal * (1 - nominal) / len(self.ranks))

    def p_values(self) -> dict[str, float]:
        """Return the p-values of chi-square tests of uniform ranks by name."""
        bins = math.gcd(self.num_samples + 1, _BINS)
        counts = torch.stack([torch.bincount(column * bins // (self.num_samples + 1), minlength=bins) for column in self.ranks.T])
        expected = len(self.ranks) / bins
        statistics = ((counts.double() - expected) ** 2 / expected).sum(1)
        tails = torch.special.gammaincc(torch.full_like(statistics, (bins - 1) / 2), statistics / 2)
        return dict(zip(self.names, tails.tolist(), strict=True))

    def calibrated(self, levels: tuple[float, ...] = LEVELS, errors: float = 3.0) -> bool:
        """Return whether every coverage is within `errors` standard errors of its expected value."""
        return all(
            abs(value - self.nominal(level)) <= errors * self.standard_error(level) for level in levels for value in self.coverage(level).values()
        )

    def __repr__(self) -> str:
        head = f"Diagnostics: {len(self.ranks)} truths, {self.num_samples} draws each; coverage at " + ", ".join(f"{level:.0%}" for level in LEVELS)
        errors = ", ".join(f"{self.standard_error(level):.3f}" for level in LEVELS)
        p_values, covered = self.p_values(), [self.coverage(level) for level in LEVELS]
        rows = [f"  {name}: {', '.join(f'{row[name]:.3f}' for row in covered)}; uniform ranks p = {p_values[name]:.3f}" for name in self.names]
        return "\n".join([f"{head}, standard errors {errors}", *rows])
