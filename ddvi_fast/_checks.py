"""Checks of arguments: errors of one line that name the argument, what was expected and what was given."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:  # the command line refuses a misspelt word without the seconds that importing torch takes
    import torch


Checked = TypeVar("Checked", bound=Callable)


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
    if type(value) is str and type(valid) is tuple and value in valid:  # the usual case, which takes no list of names
        return value
    names = [str(name) for name in valid]
    if isinstance(value, str) and value in names:
        return value
    fail(argument, f"one of {', '.join(names)}" if names else "none", value, nearest(value, names))


def nearest(value: Any, names: Iterable[str]) -> str:
    """A hint ``did you mean ...?`` for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(str(value), list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def integer(value: Any, argument: str, at_least: int | None = None, below: int | None = None) -> int:
    """Check that `value` is an integer in the range and return it as Python's; NumPy's integers are integers, booleans are not."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or (at_least is not None and value < at_least) or (below is not None and value >= below):
        fail(argument, _range("an integer", at_least, below), value)
    return int(value)


def number(
    value: Any, argument: str, *, above: float | None = None, at_least: float | None = None, below: float | None = None, at_most: float | None = None
) -> float:
    """Check that `value` is a finite real number in the range and return it as Python's; NumPy's numbers are numbers, booleans are not."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool) and _has_float(value)
    fits = real and math.isfinite(value) and (above is None or value > above) and (at_least is None or value >= at_least)
    if not fits or (below is not None and value >= below) or (at_most is not None and value > at_most):
        fail(argument, _interval(above, at_least, below, at_most), value)
    return value if type(value) is float or (type(value) is int and abs(value) < 1 << 53) else float(value)  # torch takes no longer integers


def width(value: Any, argument: str, double: bool = False) -> float:
    """Check that `value` is a positive number whose square, and the inverse of it, single (or double) precision holds, and return it."""
    return number(value, argument, at_least=1e-150 if double else 1e-18, at_most=1e150 if double else 1e18)


def _has_float(value: numbers.Real) -> bool:
    try:
        float(value)
    except OverflowError:  # of an integer or a fraction
        return False
    return True


def at_least(low: int, **sizes: Any) -> None:
    """Check that each of some arguments is an integer of at least `low`, or None."""
    for name, value in sizes.items():
        if value is not None:
            integer(value, name, low)


def integers(value: Any, argument: str, at_least: int | None = None) -> tuple[int, ...]:
    """Check that `value` is a sequence of integers of at least `at_least` and return them as a tuple of Python's."""
    expected = _range("a sequence of integers", at_least, None)
    return tuple(integer(each, f"{argument}[{i}]", at_least) for i, each in enumerate(_members(value, argument, expected)))


def rows(value: Any, size: int, argument: str = "rows") -> Any:
    """Check that `value` selects rows out of `size` and return it: a slice, indices of -size to size - 1, or a mask; lists become arrays.

    Indices on a device are not read.
    """
    import numpy
    import torch

    expected = f"a slice, a mask of length {size} or indices from {-size} to {size - 1}"
    if isinstance(value, slice):
        try:
            value.indices(size)
        except (TypeError, ValueError) as error:
            fail(argument, expected, value, one_line(error))
        return value
    found = value
    if not isinstance(value, torch.Tensor):
        try:
            found = numpy.asarray(value)
        except (TypeError, ValueError):  # lists of different lengths
            fail(argument, expected, value)
        found = found.astype(numpy.int64) if found.shape == (0,) else found
    numpys, kind = isinstance(found, numpy.ndarray), str(found.dtype).removeprefix("torch.").rstrip("0123456789")
    # torch takes unsigned indices for a mask.
    require(found.ndim == 1 and (kind in ("int", "bool") or (kind == "uint" and numpys)), argument, expected, value)
    if kind == "bool":
        require(len(found) == size, argument, expected, value)
        return found
    if len(found) and (numpys or readable(found)):
        low, high = int(found.min()), int(found.max())
        require(-size <= low and high < size, argument, expected, low if low < -size else high)
    return found.astype(numpy.int64, copy=False) if numpys else found


def numbers_of(value: Any, argument: str) -> tuple[float, ...]:
    """Check that `value` is a sequence of finite real numbers and return them as a tuple of Python's."""
    return tuple(number(each, f"{argument}[{i}]") for i, each in enumerate(_members(value, argument, "a sequence of numbers")))


def flag(value: Any, argument: str) -> bool:
    """Check that `value` is True or False, of Python or NumPy, and return Python's."""
    if not (isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")):
        fail(argument, "True or False", value)
    return bool(value)


def text(value: Any, argument: str) -> str:
    """Check that `value` is a string and return it."""
    return instance(value, str, argument, "a string")


def instance(value: Any, kind: type | tuple[type, ...], argument: str, expected: str, hint: str = "") -> Any:
    """Check that `value` is an instance of `kind` and return it."""
    require(isinstance(value, kind), argument, expected, value, hint)
    return value


def forward(module: torch.nn.Module, argument: str, count: int, expected: str, hint: str = "") -> None:
    """Check that `module` has a `forward` that takes `count` positional arguments."""
    import torch

    missing = getattr(module.forward, "__func__", None) is torch.nn.Module.forward
    try:
        inspect.signature(module.forward).bind(*[None] * count)
    except TypeError:
        missing = True
    except ValueError:  # one without a signature
        pass
    require(not missing, argument, expected, module, hint)


def path(value: Any, argument: str = "path") -> Path:
    """Check that `value` names a file or a folder and return its path."""
    instance(value, (str, os.PathLike), argument, "a path")
    require(isinstance(os.fspath(value), str) and os.fspath(value) != "" and "\0" not in os.fspath(value), argument, "a path", value)
    return Path(value)


def device(value: Any, argument: str = "device") -> torch.device:
    """Check that `value` names a device of this machine and return it."""
    import torch

    try:
        found = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        fail(argument, "a device, as cpu, cuda or cuda:0", value)
    require(found.type != "meta", argument, "a device with memory", str(found))
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        fail(argument, "a device of this machine", str(found), f"torch sees {torch.cuda.device_count()} CUDA devices")
    return found


def typed(function: Checked) -> Checked:
    """Decorate a function, or a class for its constructor: arguments must have the types of their annotations.

    Numbers, flags, text, sequences of numbers and instances of classes of this package or of torch are checked; NumPy's numbers become
    Python's. Ranges are the function's own affair, and so are all other annotations.
    """
    if inspect.isclass(function):
        function.__init__ = typed(function.__init__)
        return function
    signature = inspect.signature(function)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.empty)
    named = {name: each.annotation for name, each in signature.parameters.items() if not {each.kind, each.annotation} & set(several)}
    kinds: dict[str, Callable[[Any, str], Any]] = {}
    run = outside_inference_mode(function) if function.__name__ == "__init__" else function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kinds:  # at the first call, when all names of the module exist
            kinds.update({name: _kind(annotation, function.__globals__) for name, annotation in named.items()})
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if name in kinds:
                given.arguments[name] = kinds[name](value, name)
        return run(*given.args, **given.kwargs)

    return call


def outside_inference_mode(function: Checked) -> Checked:
    """Decorate a function whose results are kept, or that needs gradients: tensors made in inference mode have none and are copied."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None:
            return function(*args, **kwargs)
        gradients = torch.is_grad_enabled()  # which leaving inference mode would switch on
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            return function(*map(out_of_inference, args), **{name: out_of_inference(value) for name, value in kwargs.items()})

    return run


def out_of_inference(value: Any) -> Any:
    """A copy of a tensor that was made in `torch.inference_mode`, also within a tuple; anything else is returned as it is."""
    import torch

    if isinstance(value, tuple):
        parts = tuple(map(out_of_inference, value))
        return (
            value if all(new is old for new, old in zip(parts, value, strict=True)) else type(value)(*parts) if hasattr(value, "_fields") else parts
        )
    if not isinstance(value, torch.Tensor) or not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


def tensor(value: Any, argument: str, shape: tuple[int | None, ...] | None = None, floating: bool = True) -> torch.Tensor:
    """Check that `value` is a tensor of `shape` (``None`` matches any size) and return it."""
    import torch

    if not isinstance(value, torch.Tensor):
        fail(argument, "a tensor", value)
    if value.layout != torch.strided or value.is_quantized:
        fail(argument, "a dense tensor", f"a {'quantized' if value.is_quantized else str(value.layout).removeprefix('torch.')} one")
    if floating:
        require(value.is_floating_point(), argument, "a floating-point tensor", value)
    if shape is not None and not _has_shape(value.shape, shape):
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        fail(argument, f"shape {wanted}", value)
    return value


def _has_shape(have: Sequence[int], wanted: Sequence[int | None]) -> bool:
    if len(have) != len(wanted):
        return False
    for size, want in zip(have, wanted, strict=True):  # noqa: SIM110 - `all` of a generator takes twice as long
        if want is not None and want != size:
            return False
    return True


def valued(value: torch.Tensor, argument: str) -> torch.Tensor:
    """Check that a tensor has values, which those on the device meta do not, and return it."""
    require(value.device.type != "meta", argument, "a tensor with values", value)
    return value


def same_device(argument: str, value: torch.Tensor, like: torch.Tensor) -> None:
    """Check that two tensors are on one device."""
    require(value.device == like.device, argument, f"a tensor on {like.device}", value)


def same_dtype(argument: str, value: torch.Tensor, like: torch.Tensor) -> None:
    """Check that two tensors have one element type; under autocast they may differ, because operators widen their operands."""
    import torch

    if value.dtype != like.dtype and not any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        fail(argument, f"a {str(like.dtype).removeprefix('torch.')} tensor", value)


def finite(value: torch.Tensor, argument: str, hint: str = "") -> torch.Tensor:
    """Check that nothing in `value` is NaN or infinite and return it."""
    valued(value, argument)
    bad = ~value.isfinite()
    if bad.any():
        where = tuple(int(i) for i in bad.nonzero()[0])
        fail(argument, "finite values", f"{value[where].item()} at index {where}, {int(bad.sum())} such values in all", hint)
    return value


def outside() -> int:
    """Stack level, for the caller's warning, of the innermost frame outside of this package and of what calls it for the user."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("ddvi_fast", "torch", "contextlib", "sklearn"):
        frame, level = frame.f_back, level + 1
    return level


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


def _kind(annotation: Any, names: dict[str, Any]) -> Callable[[Any, str], Any]:
    """The check of an annotation; the identity where there is none."""
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if written.endswith(" | None"):
        check = _kind(written.removesuffix(" | None"), names)
        return lambda value, argument: None if value is None else check(value, argument)
    if written in _KINDS:
        return _KINDS[written]
    found = tuple(_class_named(part, names) for part in written.split(" | "))
    if all(inspect.isclass(each) for each in found):
        return lambda value, argument: instance(value, found, argument, f"an instance of {written.replace(' | ', ' or ')}")
    return lambda value, argument: value


def _class_named(name: str, names: dict[str, Any]) -> type | None:
    """The class of this package or of torch that a part of an annotation names; None for another."""
    torch = sys.modules["torch"]
    found = {"nn.Module": torch.nn.Module, "Tensor": torch.Tensor}.get(name, names.get(name))
    ours = inspect.isclass(found) and found.__module__.split(".")[0] in (__package__, "torch")
    return found if ours and not getattr(found, "_is_protocol", False) else None


_KINDS: dict[str, Callable[[Any, str], Any]] = {
    "int": integer,
    "float": number,
    "bool": flag,
    "str": text,
    "Sequence[int]": integers,
    "tuple[int, ...]": integers,
    "Sequence[float]": numbers_of,
    "tuple[float, float]": numbers_of,
}


def _range(kind: str, at_least: int | None, below: int | None) -> str:
    if at_least is None:
        return kind if below is None else f"{kind} below {below}"
    return f"{kind} of at least {at_least}" if below is None else f"{kind} in [{at_least}, {_power(below)})"


def _power(value: int) -> str:
    """A large power of 2 as one."""
    return f"2^{value.bit_length() - 1}" if value >= 1 << 16 and value & (value - 1) == 0 else str(value)


def _interval(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    low, high = above if at_least is None else at_least, below if at_most is None else at_most
    if low is not None and high is not None:
        return f"a number in {'(' if at_least is None else '['}{low}, {high}{')' if at_most is None else ']'}"
    if low is not None:
        return f"a number above {low}" if at_least is None else f"a number of at least {low}"
    if high is not None:
        return f"a number below {high}" if at_most is None else f"a number of at most {high}"
    return "a finite number"


def _members(value: Any, argument: str, expected: str) -> Iterator[Any]:
    """The members of a sequence; text, mappings, sets and what has no members are refused."""
    require(not isinstance(value, (str, bytes, dict, set, frozenset)), argument, expected, value)
    try:
        return iter(value)
    except TypeError:
        fail(argument, expected, value)


def _describe(value: Any) -> str:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"
    if torch is not None and isinstance(value, torch.nn.Module):
        return f"a module of class {type(value).__name__}"
    if numpy is not None and isinstance(value, numpy.ndarray):
        return f"a {value.dtype} array of shape {list(value.shape)}"
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    # A sentence is printed as it is; a name is quoted, so that an empty one is visible.
    return value if isinstance(value, str) and " " in value else _shortened(" ".join(repr(value).split()))


def _shortened(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
