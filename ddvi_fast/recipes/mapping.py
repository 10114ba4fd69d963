"""Conversion between options as dataclasses and as plain mappings, with checked names and types."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from ddvi_fast import _checks

Kind = TypeVar("Kind", bound=Any)
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "a mapping"}


def from_mapping(kind: type[Kind], values: Mapping[str, Any], name: str = "") -> Kind:
    """Make a dataclass from a mapping, nested ones too; fields that the mapping leaves out have their default, if they have one.

    Args:
        kind: The dataclass.
        values: Values by field name, as YAML or JSON has them.
        name: Dotted name of the mapping in messages.

    Raises:
        InputError: A name that is no field (the message has the nearest ones), a field without a default that is left out, or a value of
            another type.

    Example:
        >>> from ddvi_fast.recipes.options import RecipeOptions
        >>> from_mapping(RecipeOptions, {"epochs": 3, "kl": {"weight": 2}}).kl.weight
        2.0
    """
    hints, prefix = _hints(kind), f"{name}." if name else ""
    for key in values:
        if key not in hints:
            _checks.fail("setting", "one that exists", f"{prefix}{key}", _checks.nearest(key, hints))
    lacking = [field.name for field in dataclasses.fields(kind) if field.init and _required(field) and field.name not in values]
    _checks.require(not lacking, name or "state", f"the entries {', '.join(hints)}", f"none for {', '.join(lacking)}")
    return kind(**{key: _converted(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def names(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a dataclass, each nested dataclass before its own fields.

    Example:
        >>> from ddvi_fast.recipes.options import PriorOptions
        >>> list(names(PriorOptions))
        ['name', 'options', 'kernel_width', 'resolution']
    """
    for key, hint in _hints(kind).items():
        yield f"{prefix}{key}"
        if dataclasses.is_dataclass(hint):
            yield from names(hint, f"{prefix}{key}.")


def kinds(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names as `names` yields them, each with its type in a word; a question mark after it says that the field may be None.

    Example:
        >>> from ddvi_fast.recipes.options import EmbeddingOptions
        >>> list(kinds(EmbeddingOptions))
        [('perplexity', 'float'), ('n_neighbors', 'int'), ('min_dist', 'float')]
    """
    for key, hint in _hints(kind).items():
        inner = _without_none(hint)
        word = "group" if dataclasses.is_dataclass(inner) else "any" if inner is Any else (typing.get_origin(inner) or inner).__name__
        yield f"{prefix}{key}", word if inner is hint else f"{word}?"
        if dataclasses.is_dataclass(inner):
            yield from kinds(inner, f"{prefix}{key}.")


def left_out(kind: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted names of the fields that a mapping leaves out, and whether they are whole dataclasses.

    Example:
        >>> from ddvi_fast.recipes.options import NetworkOptions
        >>> list(left_out(NetworkOptions, {"kind": "mlp", "hidden": [8], "dropout": 0.0}))
        [('activation', False)]
    """
    for key, hint in _hints(kind).items():
        nested = dataclasses.is_dataclass(hint)
        if key not in values:
            yield f"{prefix}{key}", nested
        elif nested and isinstance(values[key], Mapping):
            yield from left_out(hint, values[key], f"{prefix}{key}.")


def plain(value: Any) -> Any:
    """`value` with numbers and arrays of other libraries as Python's numbers and lists, within lists and mappings too.

    Example:
        >>> import numpy as np
        >>> plain({"hidden": np.array([8, 4]), "lr": np.float64(0.5), "name": "a"})
        {'hidden': [8, 4], 'lr': 0.5, 'name': 'a'}
    """
    if hasattr(value, "tolist"):
        try:
            return value.tolist()
        except (TypeError, RuntimeError):  # a class, or a tensor without values that can be read
            return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else [plain(entry) for entry in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, (bool, int)) else value


def updated(options: Kind, changes: Mapping[str, Any]) -> Kind:
    """A copy of a dataclass with some fields changed.

    Args:
        options: The dataclass.
        changes: New values by dotted field name.

    Raises:
        InputError: A name that does not exist, or a value of another type.

    Example:
        >>> from ddvi_fast.recipes.options import Options
        >>> updated(Options(), {"recipe.kl.weight": 0.5, "prior.options.noise": 0.2}).prior.options
        {'noise': 0.2}
    """
    values = dataclasses.asdict(options)
    known = _names(type(options))
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        parent = ".".join(parents)
        free = isinstance(place, dict) and parent in known and not any(other.startswith(f"{parent}.") for other in known)
        if not (name in known or free):
            _checks.fail("setting", "one that exists", name, _checks.nearest(name, known))
        place[last] = value
    return from_mapping(type(options), values)


@functools.cache
def _names(kind: type) -> frozenset[str]:
    return frozenset(names(kind))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    found = typing.get_type_hints(kind)
    return {field.name: found[field.name] for field in dataclasses.fields(kind) if field.init}


def _without_none(hint: Any) -> Any:
    """The type within ``type | None``; any other type as it is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _converted(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`; numbers of another kind are converted where nothing is lost."""
    value = plain(value)
    if hint is Any:
        return value
    if (inner := _without_none(hint)) is not hint:
        return None if value is None else _converted(inner, value, name)
    if dataclasses.is_dataclass(hint):
        _checks.require(isinstance(value, Mapping), name, "a mapping", value)
        return from_mapping(hint, value, name)
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is list and isinstance(value, (list, tuple)):
        return [_converted(arguments[0], item, f"{name}[{number}]") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if origin in (list, dict):
        _checks.fail(name, _WORDS[origin], value)
    try:
        return _scalar(origin, value)
    except (KeyError, ValueError, OverflowError):
        _checks.fail(name, _WORDS[origin], value)


def _scalar(kind: type, value: Any) -> Any:
    """`value` as a bool, int, float or string; raises ValueError where that would change it."""
    if kind is bool:
        return {"true": True, "false": False}[str(value).lower()] if isinstance(value, (bool, str)) else _refuse(value)
    if isinstance(value, bool):
        return str(value).lower() if kind is str else _refuse(value)
    if not isinstance(value, (int, float, str)) or (kind is int and isinstance(value, float)):
        _refuse(value)
    converted = kind(value)
    return converted if kind is not float or math.isfinite(converted) else _refuse(value)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refuse(value: Any) -> NoReturn:
    raise ValueError(value)
