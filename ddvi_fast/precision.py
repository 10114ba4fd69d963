"""Precisions of matrix products: the only list of them, and the only policy.

Matrix products of dense networks and the hidden products of a chain's denoiser run in the narrow type, by torch's autocast. Everything
else is float32: parameters, Adam and its state, gradients and their exchange, the first and last layer of a denoiser, noise,
schedules, densities, and every sum. This holds for every family: flows, Hamiltonian steps and path integrals evaluate densities outside
of autocast's reach or widen what they take from a network.

A processor without bf16 products emulates them: operands are rounded to bf16, multiplied and added in float32. The result is that of
bf16, the speed that of float32.

The loss in ``fp16``, which has few exponents, is scaled up before backward and gradients are scaled down after it. The scale halves after a
step whose gradients overflow, which is left out, and doubles after 2,000 steps without overflow. It starts at 2^10: from 2^16 the
first steps of a run overflowed, and a run without its first steps ended further from float32 than rounding explains.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NARROW_TYPES = frozenset(NARROW.values())
PRODUCTS = ("float32", "tf32", *NARROW)  # for one operation
TRAINING = ("float32", *NARROW)  # for a run
SCALED = ("fp16",)  # those whose loss is scaled
# Parameters and tables are made so, whatever torch's default type and device are; `.to` and `.double` change them.
as_float32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
as_float64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}

_BF16_CAPABILITY = (8, 0)  # of the first GPUs with bf16 products


def narrowed(value: Tensor, precision: str) -> Tensor:
    """`value` rounded to `precision` in its own dtype; float32 and tf32 leave it as it is."""
    return value.to(NARROW[precision]).to(value.dtype) if precision in NARROW else value


def support(precision: str, device: torch.device) -> str:
    """``native`` where `device` has products of this precision, else ``emulated``.

    Raises:
        InputError: the device can do neither, or the precision is unknown.

    Example:
        >>> support("float32", torch.device("cpu"))
        'native'
    """
    if _checks.choice(precision, TRAINING, "precision") == "float32":
        return "native"
    if device.type == "cuda":
        too_old = precision == "bf16" and torch.cuda.get_device_capability(device) < _BF16_CAPABILITY
        _checks.require(not too_old, "precision", "float32 or fp16 on a GPU older than compute capability 8.0", precision)
        return "native"
    return "native" if precision == "bf16" and device.type == "cpu" and _processor_has_bf16() else "emulated"


def in_force(precision: str, device: torch.device) -> str:
    """The precision and its support in words, ``float32``, ``bf16 (native)`` or ``bf16 (emulated)``; InputError as in `support`."""
    how = support(precision, device)
    return precision if precision == "float32" else f"{precision} ({how})"


def emulation(precision: str, device: torch.device) -> str:
    """A warning where `device` rounds to the precision and multiplies in float32, which saves no time; else the empty string."""
    emulated = support(precision, device) == "emulated"
    return f"{precision} is emulated on this {device.type}, so it is no faster than precision=float32" if emulated else ""


def products_in(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A function that makes the context in which losses are computed.

    Raises:
        InputError: `device` cannot compute in this precision, or it is unknown.

    Example:
        >>> with products_in("bf16", torch.device("cpu"))():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    support(precision, device)
    if precision == "float32":
        return lambda: without_autocast(device)
    # Without autocast's cache of narrow weights, which an optimizer step makes stale.
    return lambda: torch.autocast(device.type, NARROW[precision], cache_enabled=False)


def hidden_precision(asked: str | None, device: torch.device) -> str:
    """The precision of a denoiser's hidden products: `asked`, else that of autocast, else that of torch's own float32 products."""
    if asked is not None:
        return _checks.choice(asked, PRODUCTS, "precision")
    if _autocasting(device):
        dtype = torch.get_autocast_dtype(device.type)
        return next((name for name, narrow in NARROW.items() if narrow == dtype), "float32")
    return "tf32" if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32 else "float32"


def check_reference_precision(precision: str, device: torch.device) -> None:
    """Refuse tf32 where plain PyTorch does not have it; it rounds to bf16 and fp16 everywhere."""
    if precision == "tf32":
        usable = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
        hint = "the reference has it only where torch.backends.cuda.matmul.allow_tf32 is set"
        _checks.require(usable, "precision", "float32, bf16 or fp16 instead of tf32 here", precision, hint)


def full_precision(*values: Tensor | None) -> list[Tensor | None]:
    """Operands in float32 where autocast has narrowed them: an operation computes in full precision unless it says otherwise."""
    return [value.float() if value is not None and value.dtype in _NARROW_TYPES and _autocasting(value.device) else value for value in values]


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which plain PyTorch keeps the precision of its operands."""
    return torch.autocast(device.type, enabled=False) if _autocasting(device) else nullcontext()


@contextmanager
def without_callers_autocast() -> Iterator[None]:
    """A context, or a decorator of a function, in which no autocast is in force on any device: the precision is what the settings name."""
    with without_autocast(torch.device("cpu")), without_autocast(torch.device("cuda")):
        yield


@dataclass
class LossScale:
    """The factor on an fp16 loss.

    Args:
        value: Current factor.
        growth_steps: Number of consecutive good steps after which the factor doubles.
        good_steps: Number of good steps since the factor last changed.

    Example:
        >>> scale = LossScale(8.0, growth_steps=2)
        >>> for overflow in (True, False, False, False):
        ...     scale.update(overflow)
        >>> scale.value
        8.0
    """

    value: float = 2.0**10
    growth_steps: int = 2000
    good_steps: int = 0

    def update(self, overflow: bool) -> None:
        """Adapt the factor to a step whose gradients did or did not overflow.

        Raises:
            InputError: Gradients overflow at the smallest scale too, so the scale is not the cause.
        """
        if overflow:
            _checks.require(self.value > 1.0, "gradient", "finite numbers at a loss scale of 1", "overflow in fp16", "precision=bf16 may help")
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_steps:
            self.value, self.good_steps = self.value * 2, 0


def _processor_has_bf16() -> bool:
    """Whether the compiled kernels, if they are installed, use the processor's bf16 products."""
    loader = importlib.import_module("ddvi_fast.native.loader")
    return loader.available()[0] and loader.isa() == loader.ISA_NAMES[-1]


def _autocasting(device: torch.device) -> bool:
    # Devices without autocast, such as meta, take the question itself for an error.
    available = device.type in ("cpu", "cuda") or torch.amp.is_autocast_available(device.type)
    return available and torch.is_autocast_enabled(device.type)


def narrow_type(device: torch.device) -> torch.dtype | None:
    """The type to which autocast narrows the operands of products on a device, None without autocast."""
    return torch.get_autocast_dtype(device.type) if _autocasting(device) else None
