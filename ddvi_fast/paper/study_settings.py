"""Settings of a table that is no configuration of runs: a dataclass of plain values, from overrides and as the name of a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.config.names import put, split


def read(kind: type, overrides: Sequence[str], table: str) -> dict[str, Any]:
    """Return values for fields of a dataclass, and for ``data_dir``, from overrides ``name=value``.

    Args:
        kind: The dataclass, whose defaults have the types of its fields.
        overrides: The overrides (list of str).
        table: Name of the table, for messages (str).

    Raises:
        InputError: A name is unknown or has two values, or a value has another type.
    """
    types = {field.name: type(field.default) for field in dataclasses.fields(kind)} | {"data_dir": str}
    found: dict[str, Any] = {}
    for name, text in map(split, overrides):
        put(found, name, _as(types[_checks.choice(name, types, table)], name, text))
    return found


def digest(settings: Any, names: Sequence[str] | None = None) -> str:
    """A digest of the settings `names` (default all), so that other settings have other folders."""
    stated = {name: value for name, value in dataclasses.asdict(settings).items() if names is None or name in names}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:8]


def _as(kind: type, name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        _checks.fail(name, f"a value of type {kind.__name__}", text)
