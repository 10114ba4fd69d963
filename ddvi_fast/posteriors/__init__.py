"""Posterior families `q(z | x)`, all returning `(z, log_ratio)`."""

from ddvi_fast.posteriors.base import Posterior, PosteriorSample
from ddvi_fast.posteriors.diffusion import Diffusion
from ddvi_fast.posteriors.gaussian import Gaussian
from ddvi_fast.posteriors.iaf import IAF

__all__ = ["IAF", "Diffusion", "Gaussian", "Posterior", "PosteriorSample"]
