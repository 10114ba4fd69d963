"""Denoising diffusion variational inference at hardware speed.

Importing this package touches no device, and neither Triton nor DeepSpeed: they load when something first needs them.
"""

from __future__ import annotations

import importlib
from typing import Any

from ddvi_fast._backend import use_backend
from ddvi_fast._checks import InputError

__version__ = "0.1.0"

_SUBMODULES = (
    "data",
    "denoisers",
    "evidence",
    "export",
    "genomes",
    "inference",
    "interop",
    "likelihoods",
    "metrics",
    "models",
    "networks",
    "objectives",
    "ops",
    "posteriors",
    "priors",
    "rng",
    "schedules",
)

_CLASSES = {"DDVI": "estimator", "fit_posterior": "inference"}

__all__ = ["DDVI", "InputError", "fit_posterior", "use_backend", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    """Load a submodule on first use, so that `import ddvi_fast` stays quick."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _CLASSES:
        return getattr(importlib.import_module(f"{__name__}.{_CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_CLASSES])
