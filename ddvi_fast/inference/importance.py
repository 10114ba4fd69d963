"""Importance samples of a posterior, with effective sample size and Pareto k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.inference.pareto import smooth
from ddvi_fast.inference.support import Latents
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import tell

GOOD_K = 0.7  # largest k with reliable smoothed weights (Vehtari et al. 2024)
_COARSE = 0.1  # rounding of log-weights, nats, from which a warning says so
_FEWEST = 100  # smallest number of samples for a fit of the tail


@dataclass(frozen=True, repr=False)
class ImportanceSample:
    """Samples of a posterior with their importance weights.

    The weights are those of whole paths of the chain, `p(x, z) r(y | z) / q(z, y | x)`. Their means are exact, and they vary more than
    weights of `z` alone would, so the effective sample size and k are pessimistic.

    Args:
        z: Parameters [K, D], or named parameters [K, *shape].
        log_ratios: Log-weights before smoothing, `log p(x, z) + log_ratio`, nats [K].
        log_weights: Normalized Pareto-smoothed log-weights [K] (Vehtari et al. 2024).
        pareto_k: Shape k of the tail of the weights; averages under `log_weights` are reliable below 0.7.
    """

    z: Latents
    log_ratios: Tensor
    log_weights: Tensor
    pareto_k: float

    @classmethod
    def of(cls, z: Latents, log_ratios: Tensor) -> ImportanceSample:
        """Smooth the weights of samples.

        Args:
            z: Parameters [K, D], or named parameters [K, *shape].
            log_ratios: Log-weights, nats [K].

        Raises:
            InputError: If there are fewer than 100 samples, or if a weight is NaN or infinite.
        """
        _checks.require(len(log_ratios) >= _FEWEST, "num_samples", f"at least {_FEWEST}, to fit the tail of the weights", len(log_ratios))
        usable = not bool(torch.isnan(log_ratios).any()) and bool((log_ratios < math.inf).all()) and bool(torch.isfinite(log_ratios).any())
        _checks.require(usable, "log_joint", "numbers below infinity, some of them finite", "NaN, infinity or zero probability everywhere")
        rounding = float(log_ratios[log_ratios.isfinite()].abs().max()) * torch.finfo(log_ratios.dtype).eps
        if rounding > _COARSE:
            tell(f"log_joint: rounded to {rounding:.2g} nats, too coarse for weights; compute it in double precision, or leave out a constant", 4)
        return cls(z, log_ratios, *smooth(log_ratios))

    @property
    def effective_sample_size(self) -> float:
        """Effective sample size `1 / sum w^2` of the normalized weights before smoothing, from 1 to K."""
        return float(torch.exp(-torch.logsumexp(2 * self.log_ratios.double().log_softmax(0), 0)))

    @property
    def log_evidence(self) -> float:
        """Estimate `log mean w` of the log-evidence in nats: in expectation the IWAE lower bound on `log p(x)`."""
        return float(torch.logsumexp(self.log_ratios.double(), 0)) - math.log(len(self.log_ratios))

    @property
    def elbo(self) -> float:
        """Estimate `mean log w` of the evidence lower bound in nats."""
        return float(self.log_ratios.double().mean())

    def mean(self, values: Tensor) -> Tensor:
        """Return the average [...] of `values` [K, ...] under the smoothed weights; integers and booleans count as numbers.

        Raises:
            InputError: If `values` is no tensor with K rows.
        """
        _checks.tensor(values, "values", floating=False)
        count = len(self.log_weights)
        _checks.require(values.dim() >= 1 and len(values) == count, "values", f"shape [{count}, ...]", values)
        kind = torch.promote_types(values.dtype, self.log_weights.dtype)
        return torch.tensordot(self.log_weights.exp().to(kind), values.to(self.log_weights.device, kind), 1)

    def resample(self, num_samples: int, seed: int = 0) -> Latents:
        """Return unweighted parameters [num_samples, ...], by systematic resampling."""
        offset = float(rng.uniform(Draws(seed), (1, 1), rng.ORDER))
        positions = (torch.arange(num_samples, dtype=torch.float64, device="cpu") + offset) / num_samples
        cumulative = torch.cumsum(self.log_weights.double().cpu().exp(), 0)
        chosen = torch.searchsorted(cumulative, positions).clamp(max=len(cumulative) - 1).to(self.log_weights.device)
        return {name: value[chosen] for name, value in self.z.items()} if isinstance(self.z, dict) else self.z[chosen]

    def __repr__(self) -> str:
        verdict = "reliable" if self.pareto_k < GOOD_K else "heavy tail: train longer or use a larger architecture"
        return (
            f"ImportanceSample: {len(self.log_ratios)} draws, effective sample size {self.effective_sample_size:.0f}, Pareto k {self.pareto_k:.2f} "
            f"({verdict}), log p(x) at least {self.log_evidence:.3f} (ELBO {self.elbo:.3f}) nats"
        )
