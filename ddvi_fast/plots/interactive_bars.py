"""Bars of ancestry as one HTML file that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.plots.admixture import bar_order, checked_shares
from ddvi_fast.plots.interactive import fill_page
from ddvi_fast.plots.style import class_colours

_PAGE = Path(__file__).with_suffix(".html")


def interactive_bars(
    path: str | Path,
    proportions: np.ndarray,
    sources: Sequence[str],
    people: Sequence[str],
    groups: Sequence[str] | None = None,
    title: str = "",
    *,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the bars of `admixture_bars` as one HTML file, which zooms, searches, and shows the proportions of the person under the pointer.

    Args:
        path: File to write; its name ends in ``.html``.
        proportions: Proportions [N, K], rows of which sum to 1.
        sources: Names of the K sources.
        people: Names of the N people.
        groups: Group of each person, N strings (default none). See `bar_order` for the order of the bars.
        title: Title of the page.
        interval: Lower and upper ends of an interval of each proportion, [N, K] each (default none).
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: Shapes do not fit, or the file exists.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "bars.html"
        >>> interactive_bars(path, np.array([[0.2, 0.8], [0.9, 0.1]]), ["A", "B"], ["one", "two"]).name
        'bars.html'
    """
    shares = checked_shares(proportions, sources, groups)
    _checks.require(len(people) == len(shares), "people", f"{len(shares)} names", len(people))
    ends = {} if interval is None else dict(zip(("lower", "upper"), (np.asarray(end, np.float64) for end in interval), strict=True))
    for name, end in ends.items():
        _checks.require(end.shape == shares.shape, f"interval, {name}", f"shape {list(shares.shape)}", f"shape {list(end.shape)}")
    order = bar_order(shares, groups)
    data = {
        "people": [str(people[row]) for row in order],
        "groups": None if groups is None else [str(groups[row]) for row in order],
        "sources": [str(source) for source in sources],
        "colours": class_colours(len(sources)),
        **{name: values[order].round(4).tolist() for name, values in {"shares": shares, **ends}.items()},
    }
    return fill_page(path, _PAGE, title, data, overwrite)
