"""The one place that decides which backend an operation runs on, and says why one is not available.

A fused backend is a folder of six modules, `noise`, `chain`, `sleep`, `elbo`, `kde` and `mmd`, which all have the same plain functions: a
forward, a backward, and `unsupported(**operands) -> str | None`, one line on why it cannot run a call.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks

NAMES = ("auto", "reference", "cpp", "triton")
ENVIRONMENT_VARIABLE = "DDVI_FAST_BACKEND"
OPERATIONS = ("noise", "chain", "sleep", "elbo", "kde", "mmd")

_PACKAGES = {"cpp": "ddvi_fast.native", "triton": "ddvi_fast.kernels"}
_chosen: str | None = None


class use_backend:
    """Choose the backend of the fused operations, as a call or for the length of a `with` block.

    ``reference`` runs everywhere and in float64; ``cpp`` runs float32 on the CPU and ``triton`` float32 on CUDA (on the CPU in Triton's
    interpreter, for tests), and both refuse anything else; ``auto`` takes the fused backend of the tensors' device for what it can run
    and ``reference`` for the rest. The environment variable `DDVI_FAST_BACKEND` sets the default. A function compiled by `torch.compile`
    is compiled again when the choice changes.

    Raises:
        InputError: an unknown name, or a backend that this installation does not have.

    Example:
        >>> with use_backend("reference"):
        ...     current()
        'reference'
    """

    def __init__(self, name: str) -> None:
        global _chosen
        if _checks.choice(name, NAMES, "backend") in _PACKAGES:
            reason = unavailable(name)
            _checks.require(not reason, "backend", "one that is installed", name, reason)
        self._previous, _chosen = _chosen, name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _chosen
        _chosen = self._previous


def current() -> str:
    """The name in force: chosen, else from the environment, else ``auto``."""
    return _chosen or _checks.choice(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), NAMES, ENVIRONMENT_VARIABLE)


def choose(operation: str, device: torch.device, *, constants: dict[str, Tensor] | None = None, **operands: Any) -> str:
    """The backend that computes `operation` on these operands: the chosen one, or under ``auto`` the fastest that takes them.

    `constants` are operands, too, to which the fused kernels give no gradient.

    Raises:
        InputError: the backend asked for by name cannot run this call; the text says why.
    """
    wanted = current()
    backend = fused(device) if wanted == "auto" else wanted
    if backend == "reference" or device.type == "meta":  # tensors without memory have shapes alone, which every operator can tell
        return backend
    constants = constants or {}
    reason = unavailable(backend, operation) or _asks_gradient(constants) or _not_interpreted(backend, operands.get("precision"))
    reason = reason or implementation(backend, operation).unsupported(**operands, **constants)
    if not reason:
        return backend
    if wanted != "auto":
        raise _checks.InputError(reason)
    return "reference"


def _asks_gradient(constants: dict[str, Tensor]) -> str:
    for name, value in constants.items():
        if value.requires_grad and torch.is_grad_enabled():
            return f"{name}: the fused kernels have no gradient to them; use the reference backend"
    return ""


def _not_interpreted(backend: str, precision: str | None) -> str:
    """Triton's interpreter computes with numpy, which has no bf16: its products would be those of the bit patterns."""
    wrong = backend == "triton" and precision == "bf16" and interpreted()
    return "precision: Triton's interpreter has no bf16, take float32 or fp16 there" if wrong else ""


def fused(device: torch.device) -> str:
    """The fused backend of a device, ``reference`` where there is none or it was chosen."""
    if current() == "reference":
        return "reference"
    backend = {"cpu": "cpp", "cuda": "triton"}.get(device.type, "reference")
    return "reference" if backend == "reference" or unavailable(backend) else backend


def implementation(backend: str, operation: str) -> ModuleType:
    """The module of a fused backend that computes `operation`."""
    name = f"{_PACKAGES[backend]}.{operation}"
    return sys.modules[name] if name in sys.modules else importlib.import_module(name)


def unavailable(backend: str, operation: str | None = None) -> str:
    """Why a fused backend cannot be used here, or the empty string; then its module of `operation`, if named, is imported."""
    if backend == "cpp":
        reason = importlib.import_module(f"{_PACKAGES[backend]}.loader").available()[1]
    else:
        reason = _triton_missing()
    if operation is not None and not reason:
        implementation(backend, operation)
    return reason


# torch.compile takes the answer as it is instead of tracing imports and files: it does not change within a process.
unavailable._dynamo_marked_constant = True


def _triton_missing() -> str:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {str(error).splitlines()[0]}; install it, or use the cpp or reference backend"
    if not torch.cuda.is_available() and not interpreted():
        return "Triton needs a CUDA device, or the environment variable TRITON_INTERPRET=1 set before Triton is first imported; use cpp or reference"
    return ""


def interpreted() -> bool:
    """Whether Triton was imported with its interpreter, which runs kernels on the CPU."""
    return importlib.import_module("triton").knobs.runtime.interpret


interpreted._dynamo_marked_constant = True
