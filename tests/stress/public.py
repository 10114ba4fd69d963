"""The public names that the generated tests must know, from `tests/public_api.txt`."""

from __future__ import annotations

import re
from pathlib import Path

_LISTING = Path(__file__).parents[1] / "public_api.txt"


def _lines() -> list[str]:
    return _LISTING.read_text(encoding="utf-8").splitlines()


def functions_of(module: str) -> list[str]:
    """Names of the public functions of a module of `ddvi_fast`."""
    return [found[1] for line in _lines() if (found := re.match(rf"ddvi_fast\.{module}\.(\w+)\(", line))]


def classes_of(module: str) -> list[str]:
    """Names of the public classes of a module of `ddvi_fast`."""
    return [found[1] for line in _lines() if (found := re.match(rf"class ddvi_fast\.{module}\.(\w+)\(", line))]


def methods_of(path: str) -> list[str]:
    """Names of the public methods of a class, as ``priors.Gaussian``."""
    return [found[1] for line in _lines() if (found := re.match(rf"ddvi_fast\.{re.escape(path)}\.(\w+)\(", line))]
