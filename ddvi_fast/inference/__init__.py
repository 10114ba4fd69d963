"""Posteriors of user-defined models, given a density, a simulator or both."""

from ddvi_fast.inference.diagnosis import Diagnosis
from ddvi_fast.inference.diagnostics import Diagnostics
from ddvi_fast.inference.fitting import Training, fit_posterior
from ddvi_fast.inference.importance import ImportanceSample
from ddvi_fast.inference.model import HasLogJoint, HasSimulate, Model
from ddvi_fast.inference.networks import Architecture
from ddvi_fast.inference.posterior import FittedPosterior
from ddvi_fast.inference.sets import SetEmbedding
from ddvi_fast.inference.stored import StoredSimulations
from ddvi_fast.inference.support import Support

load = FittedPosterior.load

__all__ = [
    "Architecture",
    "Diagnosis",
    "Diagnostics",
    "FittedPosterior",
    "HasLogJoint",
    "HasSimulate",
    "ImportanceSample",
    "Model",
    "SetEmbedding",
    "StoredSimulations",
    "Support",
    "Training",
    "fit_posterior",
    "load",
]
