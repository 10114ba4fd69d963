"""Importance samples: how well a posterior fits its model, measured by the weights of its own draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.inference.pareto import smooth
from ddvi_fast.inference.support import Latents
from ddvi_fast.rng import Draws

GOOD_K = 0.7  # above which smoothed weights are not to be relied on (Vehtari et al. 2024)
_FEWEST = 100  # draws that have a tail


@dataclass(frozen=True, repr=False)
class ImportanceSample:
    """Draws of a posterior and what each of them counts for.

    The weights are those of whole paths of the chain, `p(x, z) r(y | z) / q(z, y | x)`: their means are exact, and they vary more than the ones
    of `z` alone would, so that the figures below err on the careful side.

    Args:
        z: draws, [K, D] or named.
        log_ratios: log-weights [K] in nats as they are, `log p(x, z) + log_ratio`.
        log_weights: normalised, of Pareto-smoothed weights [K] (Vehtari et al. 2024).
        pareto_k: shape of the tail: below 0.7 averages under `log_weights` can be relied on.
    """

    z: Latents
    log_ratios: Tensor
    log_weights: Tensor
    pareto_k: float

    @classmethod
    def of(cls, z: Latents, log_ratios: Tensor) -> ImportanceSample:
        """Smooth the weights of draws; InputError for fewer than 100 draws, or weights that are not numbers."""
        _checks.require(len(log_ratios) >= _FEWEST, "num_samples", f"at least {_FEWEST}, to see a tail", len(log_ratios))
        usable = not bool(torch.isnan(log_ratios).any()) and bool((log_ratios < math.inf).all()) and bool(torch.isfinite(log_ratios).any())
        _checks.require(usable, "log_joint", "numbers below infinity, some of them finite", "NaN, infinity or zero probability everywhere")
        return cls(z, log_ratios, *smooth(log_ratios))

    @property
    def effective_sample_size(self) -> float:
        """`1 / sum w^2` of the normalised weights before smoothing, between 1 and K."""
        return float(torch.exp(-torch.logsumexp(2 * self.log_ratios.double().log_softmax(0), 0)))

    @property
    def log_evidence(self) -> float:
        """`log mean w` in nats: the IWAE-K lower bound on `log p(x)` in expectation."""
        return float(torch.logsumexp(self.log_ratios.double(), 0)) - math.log(len(self.log_ratios))

    @property
    def elbo(self) -> float:
        """`mean log w` in nats, the evidence lower bound."""
        return float(self.log_ratios.double().mean())

    def mean(self, values: Tensor) -> Tensor:
        """The average of `values` [K, ...] under the smoothed weights."""
        weights = self.log_weights.exp().to(values)
        return torch.tensordot(weights, values, 1)

    def resample(self, num_samples: int, seed: int = 0) -> Latents:
        """Draws from the weighted ones, [num_samples, ...], by systematic resampling."""
        offset = float(rng.uniform(Draws(seed), (1, 1), rng.ORDER))
        positions = (torch.arange(num_samples, dtype=torch.float64) + offset) / num_samples
        cumulative = torch.cumsum(self.log_weights.double().cpu().exp(), 0)
        chosen = torch.searchsorted(cumulative, positions).clamp(max=len(cumulative) - 1).to(self.log_weights.device)
        return {name: value[chosen] for name, value in self.z.items()} if isinstance(self.z, dict) else self.z[chosen]

    def __repr__(self) -> str:
        verdict = "reliable" if self.pareto_k < GOOD_K else "a heavy tail: train longer, or with a larger architecture"
        return (
            f"ImportanceSample: {len(self.log_ratios)} draws, effective sample size {self.effective_sample_size:.0f}, Pareto k {self.pareto_k:.2f} "
            f"({verdict}), log p(x) at least {self.log_evidence:.3f} (ELBO {self.elbo:.3f}) nats"
        )
