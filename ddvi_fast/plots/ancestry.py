"""Maps of populations: a hue for each group of populations, a shade and a name for each population."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, INK, PALETTE, frame, legend, mixed_order, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 4.6  # inches of a panel
_LIGHTEST, _DARKEST = 0.45, 0.35  # largest weight of white and of black in a shade


def population_colours(names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Color of each population: the hue of its group, from dark to light within the group.

    Example:
        >>> colours = population_colours(["FIN", "TSI", "YRI"], ["EUR", "EUR", "AFR"])
        >>> len(set(colours)), colours[2]
        (3, '#4c79bd')
    """
    from matplotlib.colors import to_hex, to_rgb

    order = sorted(set(groups))
    colours = []
    for name, group in zip(names, groups, strict=True):
        members = sorted(other for other, its in zip(names, groups, strict=True) if its == group)
        place = members.index(name) / (len(members) - 1) if len(members) > 1 else 0.5
        weight = (_LIGHTEST + _DARKEST) * place - _DARKEST if len(members) > 1 else 0.0
        hue = np.array(to_rgb(PALETTE[order.index(group) % len(PALETTE)]))
        colours.append(to_hex(hue + ((1.0 if weight > 0 else 0.0) - hue) * abs(weight)))
    return colours


def population_maps(
    path: str | Path,
    panels: Sequence[tuple[str, np.ndarray]],
    labels: np.ndarray,
    names: Sequence[str],
    groups: Sequence[str],
    title: str = "",
    *,
    by_group: bool = False,
    overwrite: bool = False,
) -> Path:
    """Draw several maps of the same people side by side, each with axes of its own.

    Args:
        path: File of the picture.
        panels: Title and places [N, 2] of each map.
        labels: Population of each person, integers [N].
        names, groups: Name of each population, and name of the group to which it belongs.
        title: Title of the picture.
        by_group: Whether to draw one color per group instead of one per population (bool, default False).
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: Places or labels have another shape, there is no panel, or the file exists.
    """
    _checks.require(len(panels) > 0, "panels", "at least one", 0)
    labels, colours = _checked(labels, names, groups), _colours(names, groups, by_group)
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = new_figure(_SIDE * columns, _SIDE * rows + 1.3)
    axes_grid = figure.subplots(rows, columns, squeeze=False)
    for axes in axes_grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, places) in zip(axes_grid.flat, panels, strict=False):
        places = _places(places, len(labels), name)
        _scatter(axes, places, labels, colours, 7.0)
        _name_places(axes, places, labels, groups if by_group else names, colours)
        _frame(axes, name)
    _legend(figure, names, groups, colours)
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
    labels, colours = _checked(labels, names, groups), _colours(names, groups, False)
    means, spread = samples.mean(0), samples.std(0).sum(1)
    figure = new_figure(1.9 * _SIDE, 1.9 * _SIDE + 1.3)
    axes = figure.subplots()
    axes.scatter(*means.T, s=5, c=FAINT, linewidths=0, rasterized=True)
    for label, colour in enumerate(colours):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(spread[members])]
        shown = members[np.unique(np.linspace(0, len(members) - 1, people).round().astype(int))] if len(members) else members
        for person in shown:
            axes.scatter(*samples[:, person].T, s=4, c=colour, alpha=0.35, linewidths=0, rasterized=True)
            axes.scatter(*means[person], s=26, facecolors="none", edgecolors=colour, linewidths=1.1)
    _name_places(axes, means, labels, names, colours)
    _frame(axes, "")
    _legend(figure, names, groups, colours)
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


def _colours(names: Sequence[str], groups: Sequence[str], by_group: bool) -> list[str]:
    if not by_group:
        return population_colours(names, groups)
    order = sorted(set(groups))
    return [PALETTE[order.index(group) % len(PALETTE)] for group in groups]


def _scatter(axes: Axes, places: np.ndarray, labels: np.ndarray, colours: Sequence[str], size: float) -> None:
    order = mixed_order(len(places))
    axes.scatter(*places[order].T, s=size, c=np.array(colours)[labels[order]], alpha=0.8, linewidths=0, rasterized=True)


def _name_places(axes: Axes, places: np.ndarray, labels: np.ndarray, names: Sequence[str], colours: Sequence[str]) -> None:
    """Write the name of each population (or group) at its median place, moved apart where names would overlap."""
    from matplotlib import patheffects

    held = np.array(names)[labels]
    unique = sorted(set(held))
    spots = np.array([np.median(places[held == name], axis=0) for name in unique])
    reach = np.ptp(places, axis=0).max()
    spots = _apart(spots, 0.045 * reach)
    for name, spot in zip(unique, spots, strict=True):
        colour = colours[list(names).index(name)]
        text = axes.text(*spot, name, fontsize=7.5, ha="center", va="center", color=_dark(colour), fontweight="bold", parse_math=False)
        text.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="white")])


def _apart(spots: np.ndarray, least: float) -> np.ndarray:
    """Push spots apart until their distances are at least `least`, in at most a hundred steps."""
    spots = spots + 1e-6 * least * np.arange(2 * len(spots)).reshape(-1, 2)
    for _ in range(100):
        gaps = spots[:, None] - spots[None]
        distance = np.linalg.norm(gaps, axis=-1) + np.eye(len(spots)) * 10 * least
        push = np.clip(least - distance, 0, None)[..., None] * gaps / distance[..., None]
        if not push.any():
            break
        spots = spots + 0.5 * push.sum(1)
    return spots


def _dark(colour: str) -> str:
    from matplotlib.colors import to_hex, to_rgb

    return to_hex(0.65 * np.array(to_rgb(colour)))


def _frame(axes: Axes, name: str) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    frame(axes, name, labelsize=7)


def _legend(figure: Figure, names: Sequence[str], groups: Sequence[str], colours: Sequence[str]) -> None:
    """Legend with a column per group, headed by its name."""
    from matplotlib.lines import Line2D

    order = sorted(set(groups))
    members = {group: sorted(i for i, its in enumerate(groups) if its == group) for group in order}
    longest = max(len(found) for found in members.values())
    nothing = Line2D([], [], linestyle="")
    handles, texts, heads = [], [], []
    for group in order:
        found = members[group]
        handles += [nothing, *(Line2D([], [], marker="o", linestyle="", markersize=6, markeredgewidth=0, color=colours[i]) for i in found)]
        heads.append(len(texts))
        texts += [str(group), *(str(names[i]) for i in found)]
        handles += [nothing] * (longest - len(found))
        texts += [""] * (longest - len(found))
    style = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handletextpad": 0.1, "columnspacing": 1.6, "labelspacing": 0.25}
    drawn = legend(figure, handles, texts, ncols=len(order), **style)
    for place in heads:
        drawn[place].set_fontweight("bold")
