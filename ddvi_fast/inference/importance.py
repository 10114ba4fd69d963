"""Importance samples of a posterior for one data set or for rows of data, with effective sample size and Pareto k."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

    For rows of data all tensors have the axes [K, M], and whatever is a number for one data set is a tensor [M].

    Args:
        z: Parameters [K, D], or named parameters [K, *shape].
        log_ratios: Log-weights before smoothing, nats [K]: `log p(x, z) + log_ratio`, plus the `log_factor` of
            `FittedPosterior.importance_sample` if there is one; that factor alone if the model has no density.
        log_weights: Normalized Pareto-smoothed log-weights [K] (Vehtari et al. 2024).
        pareto_k: Shape k of the tail of the weights; averages under `log_weights` are reliable below 0.7.
    """

    z: Latents
    log_ratios: Tensor
    log_weights: Tensor
    pareto_k: Any

    @classmethod
    def of(cls, z: Latents, log_ratios: Tensor) -> ImportanceSample:
        """Smooth the weights of samples.

        Args:
            z: Parameters [K, D], or named parameters [K, *shape]; for rows of data with the axes [K, M].
            log_ratios: Log-weights, nats [K] or [K, M].

        Raises:
            InputError: If there are fewer than 100 samples, or if a weight is NaN or infinite.
        """
        _checks.require(len(log_ratios) >= _FEWEST, "num_samples", f"at least {_FEWEST}, to fit the tail of the weights", len(log_ratios))
        usable = not bool(torch.isnan(log_ratios).any()) and bool((log_ratios < math.inf).all()) and bool(torch.isfinite(log_ratios).any(0).all())
        _checks.require(usable, "log_joint", "numbers below infinity, some of them finite", "NaN, infinity or zero probability everywhere")
        rounding = float(log_ratios[log_ratios.isfinite()].abs().amax()) * torch.finfo(log_ratios.dtype).eps if log_ratios.numel() else 0.0
        if rounding > _COARSE:
            tell(f"log_joint: rounded to {rounding:.2g} nats, too coarse for weights; compute it in double precision, or leave out a constant")
        if log_ratios.dim() == 1:
            return cls(z, log_ratios, *smooth(log_ratios))
        smoothed = [smooth(one) for one in log_ratios.unbind(1)]
        weights = torch.stack([one.log_weights for one in smoothed], 1) if smoothed else log_ratios
        return cls(z, log_ratios, weights, log_ratios.new_tensor([one.k for one in smoothed], dtype=torch.float64))

    @property
    def effective_sample_size(self) -> Any:
        """Effective sample size `1 / sum w^2` of the normalized weights before smoothing, from 1 to K."""
        return _number(torch.exp(-torch.logsumexp(2 * self.log_ratios.double().log_softmax(0), 0)))

    @property
    def log_evidence(self) -> Any:
        """Estimate `log mean w` of the log-evidence in nats: in expectation the IWAE lower bound on it, which is `log p(x)` without a factor."""
        return _number(torch.logsumexp(self.log_ratios.double(), 0) - math.log(len(self.log_ratios)))

    @property
    def elbo(self) -> Any:
        """Estimate `mean log w` of the evidence lower bound in nats."""
        return _number(self.log_ratios.double().mean(0))

    def mean(self, values: Tensor) -> Tensor:
        """Return the average [...] of `values` [K, ...] under the smoothed weights; integers and booleans count as numbers.

        Args:
            values: Values [K, ...]; for rows of data [K, M, ...], of which the averages are [M, ...].

        Raises:
            InputError: If `values` is no tensor of such a shape.
        """
        _checks.tensor(values, "values", floating=False)
        lead = tuple(self.log_weights.shape)
        _checks.require(tuple(values.shape[: len(lead)]) == lead, "values", f"shape [{', '.join(map(str, lead))}, ...]", values)
        kind = torch.promote_types(values.dtype, self.log_weights.dtype)
        weights, values = self.log_weights.exp().to(kind), values.to(self.log_weights.device, kind)
        return torch.tensordot(weights, values, 1) if len(lead) == 1 else torch.einsum("km,km...->m...", weights, values)

    def resample(self, num_samples: int, seed: int = 0) -> Latents:
        """Return unweighted parameters [num_samples, ...], or [num_samples, M, ...] for rows of data, by systematic resampling."""
        offset = float(rng.uniform(Draws(seed), (1, 1), rng.ORDER))
        positions = (torch.arange(num_samples, dtype=torch.float64, device="cpu") + offset) / num_samples
        cumulative = torch.cumsum(self.log_weights.double().cpu().exp(), 0).movedim(0, -1).contiguous()
        positions = positions.expand(*cumulative.shape[:-1], -1).contiguous()
        chosen = torch.searchsorted(cumulative, positions).clamp(max=cumulative.shape[-1] - 1).movedim(-1, 0).to(self.log_weights.device)
        place = (chosen,) if chosen.dim() == 1 else (chosen, torch.arange(chosen.shape[1], device=chosen.device))
        return {name: value[place] for name, value in self.z.items()} if isinstance(self.z, dict) else self.z[place]

    def __repr__(self) -> str:
        if self.log_ratios.dim() == 2:
            return self._repr_of_rows()
        verdict = "reliable" if self.pareto_k < GOOD_K else "heavy tail: few draws where the target is"
        return (
            f"ImportanceSample: {len(self.log_ratios)} draws, effective sample size {self.effective_sample_size:.0f}, Pareto k {self.pareto_k:.2f} "
            f"({verdict}), log evidence at least {self.log_evidence:.3f} (ELBO {self.elbo:.3f}) nats"
        )

    def _repr_of_rows(self) -> str:
        count, rows = self.log_ratios.shape
        if not rows:
            return f"ImportanceSample: {count} draws for each of 0 rows"
        return (
            f"ImportanceSample: {count} draws for each of {rows} rows, median effective size {float(self.effective_sample_size.median()):.0f}, "
            f"Pareto k below {GOOD_K} in {float((self.pareto_k < GOOD_K).double().mean()):.0%} of the rows, mean log evidence at least "
            f"{float(self.log_evidence.mean()):.3f} (ELBO {float(self.elbo.mean()):.3f}) nats"
        )


def factor_at(log_factor: Callable[[Latents], Tensor], z: Latents, log_weights: Tensor) -> Tensor:
    """Compute the logarithm of a factor [K] or [K, M] at parameters whose log-weights have that shape.

    Raises:
        InputError: If the function does not return numbers below infinity of that shape, some of them finite for each row.
    """
    _checks.require(callable(log_factor), "log_factor", "a function of parameters", log_factor)
    value = _checks.tensor(log_factor(z), "log_factor")
    _checks.require(value.shape == log_weights.shape, "log_factor", f"values of shape {list(log_weights.shape)}", value)
    usable = bool((value < math.inf).all()) and bool(value.isfinite().any(0).all())
    _checks.require(usable, "log_factor", "numbers below infinity, some of them finite", "NaN, infinity or minus infinity everywhere")
    return value.to(log_weights.device)


def _number(value: Tensor) -> Any:
    """A scalar as a number; a tensor of rows as it is."""
    return float(value) if value.dim() == 0 else value
