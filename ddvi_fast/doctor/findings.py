"""One thing that was looked at, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Args:
        section: where it is shown, such as ``backends``.
        name: of the thing.
        status: ``ok``; ``note`` for what is missing and not needed, or could be faster; ``problem`` for what will fail or is wrong.
        detail: what was found, with its numbers.
        advice: what to do about it; only an ``ok`` finding has none.

    Raises:
        ValueError: a note or a problem without advice.
    """

    section: str
    name: str
    status: Status
    detail: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.advice:
            raise ValueError(f"{self.section}, {self.name}: a {self.status} needs advice")
