"""Signatures of calls: all that an operation's checks and the choice of its backend depend on, so that a call like an earlier one needs neither."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from ddvi_fast import _backend

_MOST = 256  # signatures that are remembered; one more, and all are forgotten
_backends: dict[tuple, str] = {}


def signature(operation: str, tensors: Sequence[Tensor | None], *rest: Hashable) -> tuple | None:
    """What decides whether an operation takes a call, and the backend that runs it.

    Args:
        operation: Name of the operation, one of `_backend.OPERATIONS`.
        tensors: All tensors of the call. Their values do not count: checks that read values are made at every call.
        rest: The other arguments that a check looks at.

    Returns:
        The signature, or None for a call that must not be remembered: under a compiler, or with an operand that is no plain tensor.
    """
    if torch.compiler.is_compiling():
        return None
    found: list[Hashable] = []
    for value in tensors:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            found += (value.shape, value.dtype, value.device, value.layout)
        elif value is None:
            found.append(None)
        else:
            return None
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return operation, _backend.current(), *autocast, *rest, *found


def remembered(call: tuple | None) -> str | None:
    """The backend of an earlier call of the same signature that was not refused; None without one."""
    try:
        return None if call is None else _backends.get(call)
    except TypeError:  # an option that cannot be hashed, which the checks will refuse
        return None


def remember(call: tuple | None, backend: str) -> str:
    """Remember the backend of a call that passed all checks, and return it."""
    if call is not None:
        if len(_backends) >= _MOST:
            _backends.clear()
        _backends[call] = backend
    return backend


def forget() -> None:
    """Forget all calls."""
    _backends.clear()
