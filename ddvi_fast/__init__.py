"""Denoising diffusion variational inference at hardware speed.

Importing this package loads neither torch nor Triton nor DeepSpeed and touches no device: each is loaded when it is first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddvi_fast._checks import InputError

if TYPE_CHECKING:
    from ddvi_fast._backend import use_backend

__version__ = "0.1.0"

_SUBMODULES = (
    "data", "denoisers", "evidence", "export", "gap", "genomes", "inference", "interop", "likelihoods", "metrics", "models", "networks", "objectives",
    "ops", "posteriors", "priors", "rng", "schedules",
)  # fmt: skip

_NAMES = {"DDVI": "estimator", "fit_posterior": "inference", "use_backend": "_backend"}

__all__ = ["DDVI", "InputError", "fit_posterior", "use_backend", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    """A submodule or a name of one, which is imported on first use so that `import ddvi_fast` stays quick."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_NAMES])
