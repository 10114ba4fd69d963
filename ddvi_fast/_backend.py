"""Choice of the backend that runs an operation.

A fused backend is a folder of six modules, `noise`, `chain`, `sleep`, `elbo`, `kde` and `mmd`. All have the same plain functions: a
forward, a backward, and `unsupported(**operands) -> str | None`, which gives the reason in one line if it cannot run a call. The folder
of the backend ``cuda`` has the operations of `CUDA_OPERATIONS` alone, and Triton stands in for the others; `slower(**operands)` of these
modules gives the reason why Triton would be faster.
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

NAMES = ("auto", "reference", "cpp", "triton", "cuda")
ENVIRONMENT_VARIABLE = "DDVI_FAST_BACKEND"
OPERATIONS = ("noise", "chain", "sleep", "elbo", "kde", "mmd")
CUDA_OPERATIONS = ("chain",)
SIGNED = ("cuda", "triton")  # backends whose chain keeps the signs of its ReLUs for the backward pass

_PACKAGES = {"cpp": "ddvi_fast.native", "triton": "ddvi_fast.kernels", "cuda": "ddvi_fast.cuda"}
_chosen: str | None = None


class use_backend:
    """Choose the backend of the fused operations, by a plain call or for the length of a `with` block.

    The environment variable `DDVI_FAST_BACKEND` sets the default. A function compiled by `torch.compile` is compiled again when the
    choice changes.

    Args:
        name: Name of the backend. ``reference`` runs everywhere and in float64. ``cpp`` runs float32 on the CPU and ``triton`` float32 on
            CUDA (on the CPU in Triton's interpreter, for tests); both refuse anything else. ``cuda`` runs the chain in CUDA C++ and the
            other operations as ``triton``. ``auto`` uses the fused backend of the tensors' device for every call that it can run (on CUDA
            ``cuda`` for chains of few rows), and ``reference`` for the others.

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
    for some in (operands, constants or {}):
        for name, value in some.items():
            if isinstance(value, Tensor) and value.device != device:
                _checks.fail(name, f"a tensor on {device}, as the other operands", value)
    wanted, reasons = current(), []
    for backend in _candidates(wanted, operation, device):
        if backend == "reference" or device.type == "meta":  # every operator can compute the shapes of tensors without memory
            return backend
        reason = _refusal(backend, operation, constants or {}, operands) or (wanted == "auto" and _slower(backend, operation, operands))
        if not reason:
            return backend
        reasons.append(reason)
    raise _checks.InputError(reasons[0])


def _candidates(wanted: str, operation: str, device: torch.device) -> tuple[str, ...]:
    """The backends that may compute an operation, in the order in which they are asked; the last one of ``auto`` takes everything."""
    if wanted == "cuda":
        return ("cuda" if operation in CUDA_OPERATIONS else "triton",)
    if wanted != "auto":
        return (wanted,)
    first = ("cuda",) if device.type == "cuda" and operation in CUDA_OPERATIONS else ()
    return *first, fused(device), "reference"


def _refusal(backend: str, operation: str, constants: dict[str, Tensor], operands: dict[str, Any]) -> str | None:
    """The reason why a fused backend cannot run a call, if it cannot."""
    reason = unavailable(backend, operation) or _gradient_of(constants) or _not_interpreted(backend, operands.get("precision"))
    return reason or implementation(backend, operation).unsupported(**operands, **constants)


def _slower(backend: str, operation: str, operands: dict[str, Any]) -> str | None:
    """The reason why the next candidate is faster, if it is."""
    return implementation(backend, operation).slower(**operands) if backend == "cuda" else None


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


def _module(name: str) -> ModuleType:
    """A module by name, without the time that the import of one that is there takes."""
    if name not in _imported:  # a module that another thread is importing is in sys.modules before it is complete
        _imported[name] = importlib.import_module(name)
    return _imported[name]


def implementation(backend: str, operation: str) -> ModuleType:
    """The module of a fused backend that computes `operation`."""
    return _module(f"{_PACKAGES[backend]}.{operation}")


def unavailable(backend: str, operation: str | None = None) -> str:
    """The reason why a fused backend cannot be used, or the empty string if it can; then its module of `operation`, if named, is imported."""
    if backend == "cpp":
        reason = _module(f"{_PACKAGES[backend]}.loader").available()[1]
    elif backend == "cuda":
        reason = _cuda_missing()
    else:
        reason = _triton_missing()
    if operation is not None and not reason:
        implementation(backend, operation)
    return reason


# torch.compile uses the result without tracing imports and files: it does not change within a process.
unavailable._dynamo_marked_constant = True


def _triton_missing() -> str:
    try:
        if sys.modules.get("triton") is None:
            importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {str(error).splitlines()[0]}; install it, or use the cpp or reference backend"
    if not torch.cuda.is_available() and not interpreted():
        return "Triton needs a CUDA device, or the environment variable TRITON_INTERPRET=1 set before Triton is first imported; use cpp or reference"
    return ""


def _cuda_missing() -> str:
    """The reason why CUDA C++ cannot be compiled and run, or the empty string; its weight gradients are Triton's."""
    if not torch.cuda.is_available():
        return "CUDA C++ needs a CUDA device; use cpp or reference"
    return _module(f"{_PACKAGES['cuda']}.nvrtc").available()[1] or _triton_missing()


def interpreted() -> bool:
    """Whether Triton was imported with its interpreter, which runs kernels on the CPU."""
    return _module("triton").knobs.runtime.interpret


interpreted._dynamo_marked_constant = True
