"""The scikit-learn estimator: latents, clusters and bounds of any matrix, and of packed genotypes."""

from ddvi_fast.estimator.estimator import DDVI

__all__ = ["DDVI"]
