"""Registry of functions that draw further pictures of a run, or color its classes, by the name of its data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Draw = Callable[..., list[Path]]  # called as `draw(config, experiment, dataset, folder, title)`

Colors = Callable[..., "list[str] | None"]  # called as `colors(config, dataset)`

_DRAW: dict[str, Draw] = {}
_COLORS: dict[str, Colors] = {}


def register(dataset: str, draw: Draw, colors: Colors | None = None) -> None:
    """Have `plots.run.draw_run` call ``draw(config, experiment, dataset, folder, title)`` for runs of the data set of this name.

    ``colors(config, dataset)`` returns the color of each class, or None for the usual ones.
    """
    _DRAW[dataset] = draw
    if colors is not None:
        _COLORS[dataset] = colors


def further_pictures(dataset: str) -> Draw:
    """The function registered for a data set; for any other data set one that draws nothing."""
    return _DRAW.get(dataset, lambda *_: [])


def colors_of(name: str, *arguments: Any) -> list[str] | None:
    """Color of each class of a run, given its configuration and data set; None for the usual ones."""
    return _COLORS[name](*arguments) if name in _COLORS else None
