"""Findings of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """Result of one check of the installation.

    Args:
        section: Heading under which it is shown, such as ``backends``.
        name: Name of what was checked.
        status: ``ok``; ``note`` for what is missing but not needed, or could be faster; ``problem`` for what fails or is wrong.
        detail: What was found, with its numbers.
        advice: Suggested fix; only an ``ok`` finding has none.

    Raises:
        ValueError: A note or a problem has no advice.
    """

    section: str
    name: str
    status: Status
    detail: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.advice:
            raise ValueError(f"{self.section}, {self.name}: a {self.status} needs advice")


def judged(section: str, name: str, detail: str, advice: str = "", otherwise: Status = "note") -> Finding:
    """A finding that is ok without advice, and has the status `otherwise` with it."""
    return Finding(section, name, otherwise if advice else "ok", detail, advice)
