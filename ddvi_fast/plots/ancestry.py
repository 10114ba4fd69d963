"""Maps of populations: a range of hues for each group, a color, a marker and a name for each population."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, GREY, INK, class_colours, frame, legend, mixed_order, new_figure, oklch, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATENTS = ("latent 1", "latent 2")
_SIDE = 4.2  # inches of a panel
_HUE, _BAND = 40.0, 0.55  # of the first group, degrees; share of a group's sector that its populations take
_LIGHTNESS = (0.62, 0.45, 0.78, 0.53)  # of a group and, in turn, of its populations
_MARKERS = "os^DvPX*"
_SLICES = 8  # in which markers are drawn, so that none is painted over the others
_FONT, _LETTER = 8.5, 0.78  # points of a name, and mean width of its letters relative to them
_LONGEST = 14  # letters of a name in a panel; the legend has all


def group_colors(groups: Sequence[str]) -> dict[str, str]:
    """Color of each group: hues at equal distances."""
    order = sorted(set(groups))
    return {group: oklch(_LIGHTNESS[0], _hue(place, len(order))) for place, group in enumerate(order)}


def population_colours(names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Color of each population: a hue in the sector of its group, and a lightness that differs from its neighbors'.

    Where every population is a group of its own, the colors are those of classes.

    Example:
        >>> colours = population_colours(["FIN", "TSI", "YRI"], ["EUR", "EUR", "AFR"])
        >>> len(set(colours)), colours[2] == group_colors(["EUR", "AFR"])["AFR"]
        (3, True)
    """
    order = sorted(set(groups))
    if len(order) == len(names):
        return class_colours(len(names))
    colours = []
    for name, group in zip(names, groups, strict=True):
        members = _members(names, groups, group)
        place = members.index(name)
        across = place / (len(members) - 1) - 0.5 if len(members) > 1 else 0.0
        colours.append(oklch(_LIGHTNESS[place % len(_LIGHTNESS)], _hue(order.index(group) + _BAND * across, len(order))))
    return colours


def population_markers(names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Marker of each population, another one for each of a group."""
    return [_MARKERS[_members(names, groups, group).index(name) % len(_MARKERS)] for name, group in zip(names, groups, strict=True)]


def _hue(place: float, count: int) -> float:
    return _HUE + 360.0 * place / count


def _members(names: Sequence[str], groups: Sequence[str], group: str) -> list[str]:
    return sorted(name for name, its in zip(names, groups, strict=True) if its == group)


def population_maps(
    path: str | Path,
    panels: Sequence[tuple[str, np.ndarray]],
    labels: np.ndarray | Sequence[np.ndarray],
    names: Sequence[str],
    groups: Sequence[str],
    title: str = "",
    *,
    by_group: bool = False,
    axes: Sequence[tuple[str, str]] = (LATENTS,),
    columns: int | None = None,
    counted: bool = True,
    overwrite: bool = False,
) -> Path:
    """Draw several maps of people side by side. Names stand beside the points, with a line to the median place of each population.

    Panels with the same names of axes have the same limits where each panel has labels of its own, as for training and test people.

    Args:
        path: File of the picture.
        panels: Title and places [N, 2] of each map.
        labels: Population of each person, integers [N]; or an array for each panel, if they show different people.
        names, groups: Name of each population, and name of the group to which it belongs.
        title: Title of the picture.
        by_group: Whether to draw one color per group instead of one per population (bool, default False).
        axes: Names of the axes of each panel, or of all of them (default those of latents).
        columns: Number of panels in a row; None (default) for up to 4, or 2 if they show different people.
        counted: Whether the legend has the number of people of each population (bool, default True); panels may show one person several times.
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: Places or labels have another shape, there is no panel, or the file exists.
    """
    _checks.require(len(panels) > 0, "panels", "at least one", 0)
    several = isinstance(labels, (list, tuple)) and len(labels) == len(panels) and np.ndim(labels[0]) == 1
    each = [_checked(of, names, groups) for of in (labels if several else [labels] * len(panels))]
    axes = list(axes) * len(panels) if len(axes) == 1 else list(axes)
    _checks.require(len(axes) == len(panels), "axes", f"{len(panels)} pairs of names", len(axes))
    drawn = [(head, _places(places, len(of), head), of) for (head, places), of in zip(panels, each, strict=True)]
    look = _Look(names, groups, by_group)
    columns = min(len(panels), _checks.integer(columns or (2 if several else 4), "columns", 1))
    rows = -(-len(panels) // columns)
    figure = new_figure(_SIDE * columns, _SIDE * rows + 0.19 * (3 + look.longest))
    grid = figure.subplots(rows, columns, squeeze=False)
    for blank in grid.flat[len(panels) :]:
        blank.set_visible(False)
    for place, (panel, (head, places, of)) in enumerate(zip(grid.flat, drawn, strict=False)):
        alike = [other for k, (_, other, _) in enumerate(drawn) if several and axes[k] == axes[place]] or [places]
        _frame(panel, f"{head}, {len(places):,} people", axes[place])
        _limit(panel, np.concatenate(alike), look.margin(_SIDE))
        look.scatter(panel, places, of, 9.0 if len(places) < 1000 else 6.0)
        look.name(panel, places, of, _SIDE)
    # Everybody once, though there are panels of several pairs of axes.
    once = [of for of, pair in zip(each, axes, strict=True) if pair == axes[0]] if several else each[:1]
    look.legend(figure, np.bincount(np.concatenate(once), minlength=len(names)) if counted else None)
    return write(figure, path, title, overwrite)


def uncertainty(
    path: str | Path,
    samples: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    groups: Sequence[str],
    title: str = "",
    *,
    people: int = 3,
    overwrite: bool = False,
) -> Path:
    """Draw posterior samples of some people of each population as clouds around their means, over all means in gray.

    Args:
        path, labels, names, groups, title, overwrite: See `population_maps`.
        samples: Posterior samples [K, N, 2].
        people: Number of people of each population (int, default 3), from the most to the least certain by the spread of the samples.

    Raises:
        InputError: As for `population_maps`.
    """
    samples = np.asarray(samples, float)
    _checks.require(samples.ndim == 3 and samples.shape[2] == 2, "samples", "posterior samples [K, N, 2]", f"shape {list(samples.shape)}")
    labels, look = _checked(labels, names, groups), _Look(names, groups, False)
    means, spread = samples.mean(0), samples.std(0).sum(1)
    side = 2 * _SIDE
    figure = new_figure(side, side + 0.19 * (3 + look.longest))
    axes = figure.subplots()
    _frame(axes, f"{len(means):,} people; clouds of {samples.shape[0]} posterior samples of some of them", LATENTS)
    _limit(axes, np.concatenate((means, samples.reshape(-1, 2))), look.margin(side))
    axes.scatter(*means.T, s=5, c=FAINT, linewidths=0, rasterized=True)
    for label, colour in enumerate(look.colours):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(spread[members])]
        shown = members[np.unique(np.linspace(0, len(members) - 1, people).round().astype(int))] if len(members) else members
        for person in shown:
            axes.scatter(*samples[:, person].T, s=4, c=colour, alpha=0.35, linewidths=0, rasterized=True)
            axes.scatter(*means[person], s=26, marker=look.markers[label], facecolors="none", edgecolors=colour, linewidths=1.1)
    look.name(axes, means, labels, side)
    look.legend(figure, np.bincount(labels, minlength=len(names)))
    return write(figure, path, title, overwrite)


def _checked(labels: np.ndarray, names: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    labels = np.asarray(labels)
    _checks.require(len(names) == len(groups), "groups", f"{len(names)} groups, one for each population", len(groups))
    whole = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) > 0 and labels.min() >= 0 and labels.max() < len(names)
    _checks.require(bool(whole), "labels", f"whole numbers from 0 to {len(names) - 1}", f"{labels.dtype} of shape {list(labels.shape)}")
    return labels


def _places(places: np.ndarray, count: int, name: str) -> np.ndarray:
    places = np.asarray(places, float)
    fits = places.shape == (count, 2) and bool(np.isfinite(places).all())
    _checks.require(fits, name, f"finite places of shape [{count}, 2]", f"shape {list(places.shape)}")
    return places


class _Look:
    """Colors, markers and names of populations, or of their groups."""

    def __init__(self, names: Sequence[str], groups: Sequence[str], by_group: bool) -> None:
        self.names, self.groups, self.by_group = [str(name) for name in names], [str(group) for group in groups], by_group
        hues = group_colors(self.groups)
        self.colours = [hues[group] for group in self.groups] if by_group else population_colours(self.names, self.groups)
        self.markers = ["o"] * len(names) if by_group else population_markers(self.names, self.groups)
        self.written = self.groups if by_group else self.names
        # With groups of one population each, all are one list.
        self.flat = by_group or len(set(self.groups)) == len(self.names)
        self.longest = -(-len(set(self.groups)) // 5) if self.flat else max(self.groups.count(group) for group in self.groups)

    def margin(self, side: float) -> float:
        """Share of a panel's width, `side` inches, that names take on each side."""
        return min(0.3, (2 + min(_LONGEST, max(map(len, self.written)))) * _LETTER * _FONT / 72 / side)

    def scatter(self, axes: Axes, places: np.ndarray, labels: np.ndarray, size: float) -> None:
        markers = np.array(self.markers)[labels]
        for part in np.array_split(mixed_order(len(places)), _SLICES):
            for marker in sorted(set(markers[part])):
                chosen = part[markers[part] == marker]
                paint = np.array(self.colours)[labels[chosen]]
                area = size * (0.8 if marker in "os" else 1.3)
                axes.scatter(*places[chosen].T, s=area, c=paint, marker=marker, alpha=0.85, linewidths=0, rasterized=True, zorder=3)

    def name(self, axes: Axes, places: np.ndarray, labels: np.ndarray, inches: float) -> None:
        """Write names to the left and right of the points, none over another, with lines under the points to the median places."""
        held = np.array(self.written)[labels]
        unique = sorted(set(held))
        spots = np.array([np.median(places[held == name], axis=0) for name in unique])
        colours = [self.colours[self.written.index(name)] for name in unique]
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        gap = (high - low) * 1.35 * _FONT / 72 / (0.8 * inches)
        order = np.argsort(spots[:, 0], kind="stable")
        edge = (right - left) * 0.012
        for side, where, align in ((order[: len(order) // 2], left + edge, "left"), (order[len(order) // 2 :], right - edge, "right")):
            for which, height in zip(side, _spaced(spots[side, 1], min(gap, (high - low) / (len(side) + 1)), low, high), strict=True):
                word = unique[which] if len(unique[which]) <= _LONGEST else unique[which][: _LONGEST - 1] + "\u2026"
                text = axes.text(where, height, word, fontsize=_FONT, ha=align, va="center", color=_dark(colours[which]), parse_math=False)
                text.set_fontweight("bold")
                reach = (right - left) * len(word) * _LETTER * _FONT / 72 / (0.88 * inches)
                start = where + reach if align == "left" else where - reach
                axes.plot([start, spots[which, 0]], [height, spots[which, 1]], lw=0.6, color=colours[which], alpha=0.7, zorder=2)

    def legend(self, figure: Figure, counts: np.ndarray | None) -> None:
        """Legend with a column per group, headed by its name; numbers of people in parentheses."""
        from matplotlib.lines import Line2D

        def dot(index: int) -> Line2D:
            return Line2D([], [], marker=self.markers[index], linestyle="", markersize=5.5, markeredgewidth=0, color=self.colours[index])

        style = {"frameon": False, "fontsize": _FONT, "labelcolor": INK, "handletextpad": 0.1, "columnspacing": 1.4, "labelspacing": 0.25}
        order = sorted(set(self.groups))
        members = {group: sorted(i for i, its in enumerate(self.groups) if its == group) for group in order}

        def named(name: str, of: list[int]) -> str:
            return name if counts is None else f"{name} ({counts[of].sum():,})"

        if self.flat:
            handles = [dot(members[group][0]) for group in order]
            legend(figure, handles, [named(group, members[group]) for group in order], ncols=min(5, len(order)), **style)
            return
        nothing = Line2D([], [], linestyle="")
        handles, texts, heads = [], [], []
        for group in order:
            found = members[group]
            heads.append(len(texts))
            handles += [nothing, *map(dot, found), *[nothing] * (self.longest - len(found))]
            texts += [named(group, found), *(named(self.names[i], [i]) for i in found), *[""] * (self.longest - len(found))]
        drawn = legend(figure, handles, texts, ncols=len(order), **style)
        for place in heads:
            drawn[place].set_fontweight("bold")


def _spaced(heights: np.ndarray, gap: float, low: float, high: float) -> list[float]:
    """Heights at least `gap` apart in the same order, between `low` and `high`, as near to the given ones as least squares puts them."""
    from sklearn.isotonic import isotonic_regression

    count = len(heights)
    order, steps = np.argsort(heights, kind="stable"), gap * np.arange(count)
    if not count:
        return []
    moved = np.empty(count)
    fitted = isotonic_regression(heights[order] - steps) if count > 1 else heights[order]
    moved[order] = np.clip(fitted, low + gap / 2, max(low + gap / 2, high - gap / 2 - steps[-1])) + steps
    return moved.tolist()


def _dark(colour: str) -> str:
    from matplotlib.colors import to_hex, to_rgb

    return to_hex(0.65 * np.array(to_rgb(colour)))


def _frame(axes: Axes, name: str, names: tuple[str, str]) -> None:
    axes.locator_params(nbins=6)
    axes.set_xlabel(names[0], fontsize=_FONT, color=GREY, parse_math=False)
    axes.set_ylabel(names[1], fontsize=_FONT, color=GREY, parse_math=False)
    frame(axes, name, labelsize=7.5)


def _limit(axes: Axes, points: np.ndarray, margin: float) -> None:
    """Square limits with the points in the middle, and room for names at both sides."""
    low, high = points.min(0), points.max(0)
    half = max(float((high - low)[0]) / (1 - 2 * margin), float((high - low)[1]) / 0.94, 1e-3) / 2
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_aspect("equal")
