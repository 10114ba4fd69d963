"""Errors of the released code (docs/migration.md), each switched on alone to measure its effect. None of these objectives is a bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks, ops
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.base import PosteriorSample, draw_start
from ddvi_fast.released_scale import first_gaussian, log_var_excess
from ddvi_fast.rng import Draws


class DefectiveELBO(ELBO):
    """The ELBO with an error in its log-ratio; other arguments as for `ELBO`.

    Args:
        log_var_twice: `log q` contains `log_var` in place of `log_var / 2`, which rewards variance.
        standard_normal_top: The `y_T` of a diffusion posterior is compared with N(0, I) in place of the noising process's `r(y_T | z)`.

    Raises:
        InputError: A defect that the posterior cannot have.
    """

    def __init__(self, *arguments, log_var_twice: bool = False, standard_normal_top: bool = False, **options) -> None:
        super().__init__(*arguments, **options)
        diffusion = isinstance(self.posterior, Diffusion)
        _checks.require(not (log_var_twice and diffusion), "log_var_twice", "a posterior without a chain", type(self.posterior).__name__)
        _checks.require(diffusion or not standard_normal_top, "standard_normal_top", "a Diffusion posterior", type(self.posterior).__name__)
        latent = self.posterior.coordinates == "latent"
        _checks.require(latent, "method.coordinates", "latent with a defect of the bound", self.posterior.coordinates)
        self.log_var_twice, self.standard_normal_top = log_var_twice, standard_normal_top

    def draw(self, x: Tensor, encoded: Any, draws: Draws) -> PosteriorSample:
        sample = super().draw(x, encoded, draws)
        mean, log_var = first_gaussian(self.posterior, x, draws)
        log_ratio = sample.log_ratio
        if self.log_var_twice:
            log_ratio = log_ratio + log_var_excess(log_var)
        if self.standard_normal_top:
            y_T = draw_start(mean, log_var, self.num_samples, draws)
            log_ratio = log_ratio + top_excess(self.posterior, y_T, sample.z)
        return PosteriorSample(sample.z, log_ratio)


def top_excess(posterior: Diffusion, y_T: Tensor, z: Tensor) -> Tensor:
    """`log N(y_T; 0, I) - log r(y_T | z)` in nats, [K, N, D] -> [K, N]."""
    schedule = posterior.schedule
    signal, variance = schedule.alpha_bars[-1].to(z).sqrt(), schedule.noise_variances[-1].to(z)
    zeros = torch.zeros_like(z)
    return ops.gaussian_log_prob(y_T, zeros, zeros) - ops.gaussian_log_prob(y_T, signal * z, variance.log().expand_as(z))
