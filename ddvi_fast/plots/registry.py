"""Registry of functions that draw further pictures of a run, by the name of its data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Draw = Callable[..., list[Path]]  # called as `draw(config, experiment, dataset, folder, title)`

_DRAW: dict[str, Draw] = {}


def register(dataset: str, draw: Draw) -> None:
    """Have `plots.run.draw_run` call ``draw(config, experiment, dataset, folder, title)`` for runs of the data set of this name."""
    _DRAW[dataset] = draw


def further_pictures(dataset: str) -> Draw:
    """The function registered for a data set; for any other data set one that draws nothing."""
    return _DRAW.get(dataset, lambda *_: [])
