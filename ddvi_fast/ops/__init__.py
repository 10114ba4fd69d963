"""The fused operations: noising, the denoising chain, the sleep term's regression, the bound's reductions, kernel density, MMD."""

from ddvi_fast.ops.chain import ChainSample, sample_chain
from ddvi_fast.ops.elbo import (
    bernoulli_log_likelihood,
    binomial_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
    gaussian_log_prob,
    log_mean_exp,
)
from ddvi_fast.ops.kde import kde_log_density
from ddvi_fast.ops.mmd import mmd
from ddvi_fast.ops.noise import add_noise
from ddvi_fast.ops.sleep import LOSSES, denoising_loss, regression
from ddvi_fast.ops.trajectory import trajectory_log_ratio

__all__ = [
    "LOSSES",
    "ChainSample",
    "add_noise",
    "bernoulli_log_likelihood",
    "binomial_log_likelihood",
    "denoising_loss",
    "gaussian_kl",
    "gaussian_log_likelihood",
    "gaussian_log_prob",
    "kde_log_density",
    "log_mean_exp",
    "mmd",
    "regression",
    "sample_chain",
    "trajectory_log_ratio",
]
