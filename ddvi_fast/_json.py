"""JSON with one line for each row of a table."""

from __future__ import annotations

import json
from typing import Any


def lines(value: Any, width: int = 1500) -> str:
    """Format a value as JSON: lists and mappings that are longer than `width` have one line for each of their entries, others one line in all.

    Args:
        value: Anything that `json.dumps` takes.
        width: Longest text that stays on one line (int, characters, default 1500). The outermost value is always broken.

    Example:
        >>> print(lines({"seeds": 2, "runs": [{"seed": 0}, {"seed": 1}]}, width=20))
        {
         "seeds": 2,
         "runs": [
          {"seed": 0},
          {"seed": 1}
         ]
        }
    """
    return _broken(value, width, 0)


def _broken(value: Any, width: int, depth: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not (isinstance(value, (dict, list)) and value) or (depth and len(text) <= width):
        return text
    indent, closing = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        entries = [f"{indent}{json.dumps(key, ensure_ascii=False)}: {_broken(entry, width, depth + 1)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(entries) + f"\n{closing}}}"
    return "[\n" + ",\n".join(indent + _broken(entry, width, depth + 1) for entry in value) + f"\n{closing}]"
