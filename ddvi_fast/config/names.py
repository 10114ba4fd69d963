"""Names and types of settings, values of settings from text, and choices of configuration groups, without torch and Hydra.

The names and types stand in `names.txt`; `python -m ddvi_fast.config.names` writes it anew from the schema.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddvi_fast import _checks

CONF = Path(__file__).with_name("conf")
LISTING = Path(__file__).with_name("names.txt")
GROUPS = ("dataset", "prior", "method", "recipe")
# Options that are passed on to a library function, which checks their names.
FREE = ("dataset.likelihood_options", "prior.options", "method.chain.schedule_options")
_RENAMED = {("prior", "swiss_roll"): "prior=swiss_roll is now prior=swiss_roll_noisy: the swiss roll with noise 0.1, which has a density"}
_HEAD = "# Dotted names and types of all settings, written from the schema by `python -m ddvi_fast.config.names`.\n"
_WORDS = {"bool": "true or false", "int": "an integer", "float": "a number", "list": "a list", "dict": "a mapping", "group": "a mapping"}
_TRUTH = {"true": True, "false": False}


def choices(group: str) -> list[str]:
    """The names of the files of a configuration group.

    Example:
        >>> choices("prior")[:3]
        ['gaussian', 'less_noisy_square', 'mixture']
    """
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def check_choice(group: str, name: str, further: Sequence[str] = ()) -> str:
    """Return `name` if it is a choice of a configuration group, or one of the `further` names.

    Raises:
        InputError: `name` is not one of them; the message has the nearest ones, or what an old name is now.

    Example:
        >>> check_choice("prior", "swiss_roll")
        Traceback (most recent call last):
        ddvi_fast._checks.InputError: prior=swiss_roll is now prior=swiss_roll_noisy: the swiss roll with noise 0.1, which has a density
    """
    if isinstance(name, str) and (group, name) in _RENAMED:
        raise _checks.InputError(_RENAMED[group, name])
    return _checks.choice(name, [*further, *choices(group)], group)


def check_overrides(overrides: Iterable[str]) -> None:
    """Check the form ``name=value`` of overrides, names and values of their settings, and the choices of configuration groups.

    Raises:
        InputError: the first override that is wrong, with the nearest valid names, or a setting with two values.
    """
    for name, text in read(overrides).items():
        if name in GROUPS:
            check_choice(name, text)


def read(overrides: Iterable[str], argument: str = "override") -> dict[str, Any]:
    """Values of settings by dotted name, and the names of the choices of configuration groups, from overrides ``name=value``.

    Args:
        overrides: The overrides, of which no two may give a setting different values.
        argument: Name of the overrides in messages.

    Raises:
        InputError: An override of another form, an unknown setting, a value of another type, or a setting with two values.

    Example:
        >>> read(["prior=square", "epochs=3", "recipe.kl={weight: 0.5}"])
        {'prior': 'square', 'epochs': 3, 'recipe.kl.weight': 0.5}
    """
    found: dict[str, Any] = {}
    for override in overrides:
        name, text = split(override, argument)
        for setting, value in ({name: text} if name in GROUPS else values_of(name, text)).items():
            put(found, setting, value)
    return found


def put(found: dict[str, Any], setting: str, value: Any) -> None:
    """Add the value of a setting to those that were found; InputError if it has another value there."""
    once = setting not in found or repr(found[setting]) == repr(value)
    _checks.require(once, setting, "one value", f"{found.get(setting)} and {value}")
    found[setting] = value


def split(override: str, argument: str = "override") -> tuple[str, str]:
    """Name and value of ``name=value``; raises InputError for anything else."""
    name, sign, value = override.partition("=")
    _checks.require(bool(sign) and bool(name), argument, "name=value", override)
    return name, value


def values_of(name: str, text: str) -> dict[str, Any]:
    """Values by dotted name that a text means for a setting: the type of the setting decides how it is read.

    A string is taken as it stands, apart from the word ``null`` for a setting that may be null. A mapping sets the settings that it names.

    Raises:
        InputError: No such setting, or a text that is not of its type.

    Example:
        >>> values_of("run_dir", "2026_11_29"), values_of("recipe.lr", "1e-3"), values_of("recipe.kl", "{kind: linear, weight: 0.5}")
        ({'run_dir': '2026_11_29'}, {'recipe.lr': 0.001}, {'recipe.kl.kind': 'linear', 'recipe.kl.weight': 0.5})
    """
    kind, optional = _kind(name)
    if optional and text == "null":
        return {name: None}
    try:
        return _flat(name, _mapping(text)) if kind in ("group", "dict") else {name: _READERS[kind](text)}
    except _checks.InputError:  # of a setting within a mapping
        raise
    except (KeyError, ValueError, SyntaxError, MemoryError, RecursionError):  # the last three of Python's parser
        _checks.fail(name, _WORDS[kind], text)


def setting_names() -> tuple[str, ...]:
    """The dotted names of all settings and of the nodes they stand in."""
    return tuple(_kinds())


def listing() -> list[str]:
    """The lines that `LISTING` must hold, in the schema's order: name and type of each setting."""
    from ddvi_fast.config.schema import Config
    from ddvi_fast.recipes.mapping import kinds

    return [f"{name} {kind}" for name, kind in kinds(Config)]


@functools.cache
def _kinds() -> dict[str, str]:
    return dict(line.split() for line in LISTING.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))


def _kind(name: str) -> tuple[str, bool]:
    """Type of a setting, and whether it may be null."""
    if name.startswith(tuple(f"{free}." for free in FREE)):
        return "any", True
    kind = _kinds().get(name)
    if kind is None:
        hint = _checks.nearest(name, _kinds()) or "ddvi-fast train --settings lists the settings"
        _checks.fail("setting", "one that exists", name, hint)
    return kind.removesuffix("?"), kind.endswith("?")


def _flat(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= values_of(f"{name}.{key}", value) if isinstance(value, str) else {f"{name}.{key}": _inner(value)}
    return found


def _inner(value: Any) -> Any:
    """A list or mapping within a mapping, whose texts have no type of their own."""
    if isinstance(value, dict):
        return {key: _inner(entry) for key, entry in value.items()}
    return [_inner(entry) for entry in value] if isinstance(value, list) else _any(value)


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d+\s*", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    value = float(text.replace("_", " "))  # Python would take 1_0 for ten
    if not math.isfinite(value):  # which JSON does not have
        raise ValueError(text)
    return value


def _list(text: str) -> list[Any]:
    value = ast.literal_eval(text)
    if not isinstance(value, (list, tuple)):
        raise ValueError(text)
    return list(value)


def _mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML, whose values stay text."""
    yaml = _checks.library("yaml", "train")
    try:
        node = yaml.compose(text, yaml.BaseLoader)
        value = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(text) from error
    if not isinstance(value, dict):
        raise ValueError(text)
    _check_keys(node)
    return value


def _check_keys(node: Any) -> None:
    """Refuse a mapping, or one within it, that names a key twice: YAML's readers take the last one."""
    entries = node.value if isinstance(node.value, list) else []
    if node.id == "mapping":
        keys = [key.value for key, _ in entries if isinstance(key.value, str)]
        for key in keys:
            _checks.require(keys.count(key) == 1, key, "one value", "two of them in a mapping")
    for entry in entries:
        _check_keys(entry[1] if node.id == "mapping" else entry)


def _any(text: str) -> Any:
    """A number, a truth value, null or a list where the text is one; otherwise the text as it stands."""
    if text in _ANY:
        return _ANY[text]
    for read in (_integer, _number, _list):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


_ANY = {**_TRUTH, "null": None}
_READERS = {"str": str, "bool": lambda text: _TRUTH[text.lower()], "int": _integer, "float": _number, "list": _list, "any": _any}


if __name__ == "__main__":
    LISTING.write_text(_HEAD + "\n".join(listing()) + "\n", encoding="utf-8")
