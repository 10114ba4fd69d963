"""Bars of ancestry: a column for each person, divided by the proportions of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, GREY, INK, class_colours, legend, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 12.0, 2.8  # inches
_FONT = 8.5


def bar_order(proportions: np.ndarray, groups: Sequence[str] | None = None) -> np.ndarray:
    """Order of people in the bars, int64 [N].

    Groups with the same largest source stand side by side, the ones with the largest mean of it first; within a group people are in the order of
    the group's largest source. Without groups, people are grouped by their own largest source.

    Args:
        proportions: Proportions [N, K].
        groups: Group of each person, N strings (default none).

    Example:
        >>> shares = np.array([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
        >>> bar_order(shares).tolist(), bar_order(shares, ["b", "a", "a", "b"]).tolist()
        ([1, 2, 3, 0], [1, 2, 3, 0])
    """
    shares = np.asarray(proportions, np.float64)
    names = np.asarray([str(source) for source in shares.argmax(1)] if groups is None else groups, object)
    means = {name: shares[names == name].mean(0) for name in dict.fromkeys(names.tolist())}
    ranked = sorted(means, key=lambda name: (int(means[name].argmax()), -float(means[name].max()), str(name)))
    parts = []
    for name in ranked:
        members = np.flatnonzero(names == name)
        parts.append(members[np.argsort(-shares[members, means[name].argmax()], kind="stable")])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def admixture_bars(
    path: str | Path,
    proportions: np.ndarray,
    sources: Sequence[str],
    groups: Sequence[str] | None = None,
    title: str = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Draw the proportions of people as stacked bars without gaps, as geneticists do.

    Args:
        path: File to write, which ends in .png, .pdf or .svg.
        proportions: Proportions [N, K], rows of which sum to 1.
        sources: Names of the K sources.
        groups: Group of each person, N strings, whose names stand below their bars (default none). See `bar_order` for the order.
        title: Title (default none).
        overwrite: Whether to replace a file (bool, default False).

    Raises:
        InputError: Shapes do not fit, or the file exists.
    """
    shares = checked_shares(proportions, sources, groups)
    order, colours = bar_order(shares, groups), class_colours(len(sources))
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_subplot()
    edges, top = np.arange(len(shares) + 1), np.zeros(len(shares))
    for source, colour in enumerate(colours):
        below, top = top, top + shares[order, source]
        axes.stairs(top, edges, baseline=below, fill=True, color=colour, linewidth=0)
    axes.set(xlim=(0, len(shares)), ylim=(0, 1), xticks=[], yticks=(0, 0.5, 1))
    axes.tick_params(labelsize=7.5, length=2.5, width=0.6, color=FAINT, labelcolor=GREY)
    axes.spines[:].set(linewidth=0.6, color=FAINT)
    if groups is not None:
        _name_groups(axes, np.asarray(groups, object)[order])
    from matplotlib.patches import Patch

    style = {"frameon": False, "fontsize": _FONT, "labelcolor": INK, "ncols": min(8, len(sources)), "handlelength": 1.0, "columnspacing": 1.4}
    legend(figure, [Patch(color=colour) for colour in colours], list(sources), **style)
    return write(figure, path, title, overwrite)


def checked_shares(proportions: np.ndarray, sources: Sequence[str], groups: Sequence[str] | None) -> np.ndarray:
    """Proportions as float64 [N, K]; InputError unless there are K names of sources, and N of groups if any."""
    shares = np.asarray(proportions, np.float64)
    fits = shares.ndim == 2 and shares.shape[1] == len(sources) and len(shares) > 0
    _checks.require(fits, "proportions", f"a row of {len(sources)} numbers for each person", f"shape {list(shares.shape)}")
    _checks.require(groups is None or len(groups) == len(shares), "groups", f"{len(shares)} names", 0 if groups is None else len(groups))
    return shares


def _name_groups(axes: Axes, groups: np.ndarray) -> None:
    """Lines between groups, and their names below, aslant where there are many."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    ends = np.r_[starts[1:], len(groups)]
    for start in starts[1:]:
        axes.axvline(start, color="white", linewidth=0.8)
    many = len(starts) > 12
    axes.set_xticks((starts + ends) / 2, groups[starts], fontsize=_FONT, color=INK, rotation=45 if many else 0, ha="right" if many else "center")
    axes.tick_params(axis="x", length=0)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
