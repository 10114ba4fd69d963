"""Registry of functions that write further files of a run, by the name of its data set."""

from __future__ import annotations

from collections.abc import Callable

Keep = Callable[..., None]  # called as `keep(config, experiment, dataset, folder)`

_KEEP: dict[str, Keep] = {}


def register(dataset: str, keep: Keep) -> None:
    """Have runs of the data set of this name call ``keep(config, experiment, dataset, folder)`` when they are evaluated."""
    _KEEP[dataset] = keep


def further_files(dataset: str) -> Keep:
    """The function registered for a data set; for any other data set one that writes nothing."""
    return _KEEP.get(dataset, lambda *_: None)
