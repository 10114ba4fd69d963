"""Posterior families q(z | x) with one interface: samples and their log-ratios."""

from ddvi_fast.posteriors.adversarial import Adversarial
from ddvi_fast.posteriors.base import Posterior, PosteriorSample
from ddvi_fast.posteriors.diffusion import Diffusion
from ddvi_fast.posteriors.full_gaussian import FullGaussian
from ddvi_fast.posteriors.gaussian import Gaussian
from ddvi_fast.posteriors.hamiltonian import Hamiltonian
from ddvi_fast.posteriors.hierarchical_iaf import HierarchicalIAF
from ddvi_fast.posteriors.iaf import IAF
from ddvi_fast.posteriors.path_integral import PathIntegral
from ddvi_fast.posteriors.planar import Planar
from ddvi_fast.posteriors.zuko_flows import RealNVP, Spline

__all__ = [
    "IAF",
    "Adversarial",
    "Diffusion",
    "FullGaussian",
    "Gaussian",
    "Hamiltonian",
    "HierarchicalIAF",
    "PathIntegral",
    "Planar",
    "Posterior",
    "PosteriorSample",
    "RealNVP",
    "Spline",
]
