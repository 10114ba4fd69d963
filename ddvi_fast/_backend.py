"""Choice of the backend that runs an operation.

A fused backend is a folder of six modules, `noise`, `chain`, `sleep`, `elbo`, `kde` and `mmd`. All have the same plain functions: a
forward, a backward, and `unsupported(**operands) -> str | None`, which gives the reason in one line if it cannot run a call.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks

NAMES = ("auto", "reference", "cpp", "triton")
ENVIRONMENT_VARIABLE = "DDVI_FAST_BACKEND"
OPERATIONS = ("noise", "chain", "sleep", "elbo", "kde", "mmd")
SIGNED = ("cuda",)  # backends whose chain keeps the signs of its ReLUs for the backward pass

_PACKAGES = {"cpp": "ddvi_fast.native", "triton": "ddvi_fast.kernels"}
_chosen: str | None = None


class use_backend:
    """Choose the backend of the fused operations, by a plain call or for the length of a `with` block.

    The environment variable `DDVI_FAST_BACKEND` sets the default. A function compiled by `torch.compile` is compiled again when the
    choice changes.

    Args:
        name: Name of the backend. ``reference`` runs everywhere and in float64. ``cpp`` runs float32 on the CPU and ``triton`` float32 on
            CUDA (on the CPU in Triton's interpreter, for tests); both refuse anything else. ``auto`` uses the fused backend of the tensors'
            device for every call that it can run, and ``reference`` for the others.

    Raises:
        InputError: The name is unknown, or this installation does not have the backend.

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
    """The name in force: the chosen one, else that of the environment, else ``auto``."""
    return _chosen or _checks.choice(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), NAMES, ENVIRONMENT_VARIABLE)


def choose(operation: str, device: torch.device, *, constants: dict[str, Tensor] | None = None, **operands: Any) -> str:
    """The backend that computes an operation: the chosen one, or under ``auto`` the fastest that can run it.

    Args:
        operation: Name of the operation, one of `OPERATIONS`.
        device: Device of the operands.
        constants: Operands by name that have no gradient in the fused kernels (default None).
        operands: All other operands by name.

    Raises:
        InputError: The backend asked for by name cannot run this call; the message gives the reason.
    """
    wanted = current()
    backend = fused(device) if wanted == "auto" else wanted
    if backend == "reference" or device.type == "meta":  # every operator can compute the shapes of tensors without memory
        return backend
    constants = constants or {}
    reason = unavailable(backend, operation) or _gradient_of(constants) or _not_interpreted(backend, operands.get("precision"))
    reason = reason or implementation(backend, operation).unsupported(**operands, **constants)
    if not reason:
        return backend
    if wanted != "auto":
        raise _checks.InputError(reason)
    return "reference"


def _gradient_of(constants: dict[str, Tensor]) -> str:
    for name, value in constants.items():
        if value.requires_grad and torch.is_grad_enabled():
            return f"{name}: the fused kernels have no gradient with respect to it; use the reference backend"
    return ""


def _not_interpreted(backend: str, precision: str | None) -> str:
    """The reason why Triton's interpreter cannot use a precision: NumPy has no bf16, so products would be those of the bit patterns."""
    wrong = backend == "triton" and precision == "bf16" and interpreted()
    return "precision: Triton's interpreter has no bf16; use float32 or fp16" if wrong else ""


def fused(device: torch.device) -> str:
    """The fused backend of a device, or ``reference`` where there is none or ``reference`` was chosen."""
    if current() == "reference":
        return "reference"
    backend = {"cpu": "cpp", "cuda": "triton"}.get(device.type, "reference")
    return "reference" if backend == "reference" or unavailable(backend) else backend


_imported: dict[str, ModuleType] = {}


def implementation(backend: str, operation: str) -> ModuleType:
    """The module of a fused backend that computes `operation`."""
    name = f"{_PACKAGES[backend]}.{operation}"
    if name not in _imported:  # a module that another thread is importing is in sys.modules before it is complete
        _imported[name] = importlib.import_module(name)
    return _imported[name]


def unavailable(backend: str, operation: str | None = None) -> str:
    """The reason why a fused backend cannot be used, or the empty string if it can; then its module of `operation`, if named, is imported."""
    if backend == "cpp":
        reason = importlib.import_module(f"{_PACKAGES[backend]}.loader").available()[1]
    else:
        reason = _triton_missing()
    if operation is not None and not reason:
        implementation(backend, operation)
    return reason


# torch.compile uses the result without tracing imports and files: it does not change within a process.
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
