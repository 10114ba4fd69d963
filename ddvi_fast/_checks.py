"""Checks of arguments: errors of one line that name the argument, what was expected and what was given."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # the command line refuses a misspelt word without the seconds that importing torch takes
    import torch


class InputError(ValueError):
    """Input that cannot be used. The message is one line; the command line prints it and exits with 2."""


def fail(argument: str, expected: str, got: Any, hint: str = "") -> NoReturn:
    """Raise `InputError` in the common form ``argument: expected ..., got ... (hint)``."""
    raise InputError(f"{argument}: expected {expected}, got {_describe(got)}" + (f" ({hint})" if hint else ""))


def require(condition: bool, argument: str, expected: str, got: Any, hint: str = "") -> None:
    """Call `fail` with the other arguments unless `condition` holds."""
    if not condition:
        fail(argument, expected, got, hint)


def choice(value: Any, valid: Iterable[str], argument: str) -> str:
    """Return `value` if it is one of `valid`; otherwise name the nearest valid names."""
    names = [str(name) for name in valid]
    if value in names:
        return value
    fail(argument, f"one of {', '.join(names)}", value, nearest(value, names))


def nearest(value: Any, names: Iterable[str]) -> str:
    """A hint ``did you mean ...?`` for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(str(value), list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def tensor(value: Any, argument: str, shape: tuple[int | None, ...] | None = None, floating: bool = True) -> torch.Tensor:
    """Check that `value` is a tensor of `shape` (``None`` matches any size) and return it."""
    import torch

    if not isinstance(value, torch.Tensor):
        fail(argument, "a tensor", value)
    if floating:
        require(value.is_floating_point(), argument, "a floating-point tensor", value)
    if shape is not None:
        fits = value.dim() == len(shape) and all(want is None or want == have for want, have in zip(shape, value.shape, strict=True))
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        require(fits, argument, f"shape {wanted}", value)
    return value


def same_device(argument: str, value: torch.Tensor, like: torch.Tensor) -> None:
    """Check that two tensors are on one device."""
    require(value.device == like.device, argument, f"a tensor on {like.device}", value)


def finite(value: torch.Tensor, argument: str) -> torch.Tensor:
    """Check that nothing in `value` is NaN or infinite and return it."""
    bad = ~value.isfinite()
    if bad.any():
        where = tuple(int(i) for i in bad.nonzero()[0])
        fail(argument, "finite values", f"{value[where].item()} at index {where}, {int(bad.sum())} such values in all")
    return value


def one_line(error: BaseException) -> str:
    """Class and message of an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def library(name: str, extra: str) -> ModuleType:
    """Import an optional library; `InputError` that names the extra of this package where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fail(name, "an installed package", " ".join(str(error).split()), f"pip install 'ddvi-fast[{extra}]'")


def readable(value: torch.Tensor) -> bool:
    """Whether the values of a tensor can be read: reading would stall a device, and a compiled function does not have them yet."""
    import torch

    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def _describe(value: Any) -> str:
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"
    # A sentence is printed as it is; a name is quoted, so that an empty one is visible.
    return value if isinstance(value, str) and " " in value else " ".join(repr(value).split())
