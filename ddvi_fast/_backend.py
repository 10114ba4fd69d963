"""The one place that decides which backend an operation runs on, and says why one is not available.

Every backend is a folder of five modules, `noise`, `chain`, `elbo`, `kde` and `mmd`, with the functions of `reference/`.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

from ddvi_fast import _checks

NAMES = ("auto", "reference", "cpp", "triton")
ENVIRONMENT_VARIABLE = "DDVI_FAST_BACKEND"

_PACKAGES = {"reference": "ddvi_fast.reference", "cpp": "ddvi_fast.native"}
_chosen: str | None = None


class use_backend:
    """Choose the backend of the fused operations, as a call or for the length of a `with` block.

    ``reference`` runs everywhere and in float64; ``cpp`` runs float32 on the CPU and refuses anything else; ``auto`` takes ``cpp`` for
    what it can run and ``reference`` for the rest. The environment variable `DDVI_FAST_BACKEND` sets the default.

    Raises:
        InputError: an unknown name, or a backend that this installation does not have.

    Example:
        >>> with use_backend("reference"):
        ...     current()
        'reference'
    """

    def __init__(self, name: str) -> None:
        global _chosen
        if _checks.choice(name, NAMES, "backend") != "auto":
            _available(name)
        self._previous, _chosen = _chosen, name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _chosen
        _chosen = self._previous


def current() -> str:
    """The name in force: chosen, else from the environment, else ``auto``."""
    return _chosen or _checks.choice(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), NAMES, ENVIRONMENT_VARIABLE)


def operation(name: str, *operands: Any, **options: Any) -> ModuleType:
    """The module that computes operation `name` on `operands`: the chosen backend's, or under ``auto`` the fastest that takes them."""
    backend = current()
    if backend != "auto":
        return importlib.import_module(f"{_available(backend)}.{name}")
    if _compiled()[0]:
        fused = importlib.import_module(f"{_PACKAGES['cpp']}.{name}")
        if fused.unsupported(*operands, **options) is None:
            return fused
    return importlib.import_module(f"{_PACKAGES['reference']}.{name}")


def _available(backend: str) -> str:
    """The package of a backend; a backend that cannot run here is an error that says why."""
    if backend not in _PACKAGES:
        _checks.fail("backend", f"auto or one that this version has ({', '.join(_PACKAGES)})", backend)
    if backend == "cpp":
        built, reason = _compiled()
        _checks.require(built, "backend", "one that is installed", backend, reason)
    return _PACKAGES[backend]


def _compiled() -> tuple[bool, str]:
    """Whether the compiled extension can be used, and if not, why."""
    # Imported here because the wrappers draw on modules above this one.
    return importlib.import_module("ddvi_fast.native.loader").available()
