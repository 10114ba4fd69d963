"""Scatter plots of latents by class, beside the prior and beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, GREY, INK, LEGEND, UNLABELLED, class_colours, frame, legend, mixed_order, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 20_000  # largest number of points of a panel, since more cannot be distinguished


def latents(
    path: str | Path,
    latents: Tensor,
    labels: Tensor | None,
    prior_samples: Tensor,
    prior_labels: Tensor | None = None,
    title: str = "",
    *,
    class_names: Sequence[str] | None = None,
    class_colors: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw latents beside samples of the prior, on the same axes.

    Args:
        path: File of the picture, which is returned.
        latents, labels: Latents [N, 2] and their classes, integers [N]; without classes, and for classes below 0, points are gray.
        prior_samples, prior_labels: Samples of the prior [M, 2] and their classes [M].
        title: Title of the picture.
        class_names: Name of each class (default: its number).
        class_colors: Color of each class (default those of `class_colours`).
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: Latents are not two-dimensional, labels have another length, or the file exists.

    Example:
        >>> import tempfile
        >>> z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> latents(Path(tempfile.mkdtemp()) / "latents.png", z, torch.arange(50) % 10, z).name
        'latents.png'
    """
    panels = [("posterior samples", latents, labels), ("prior", prior_samples, prior_labels)]
    return _scatter_panels(path, panels, title, class_names, overwrite, colours=class_colors, counted=True)


def comparison(
    path: str | Path,
    panels: Sequence[tuple[str, Tensor, Tensor | None]],
    title: str = "",
    *,
    prior_samples: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw panels of (title, latents [N, 2], labels [N] or None) side by side on the same axes, over samples of the prior [M, 2] in gray if given.

    Raises:
        InputError: As for `latents`, or there is no panel.
    """
    _checks.require(len(panels) > 0, "panels", "at least one", 0)
    return _scatter_panels(path, panels, title, class_names, overwrite, backdrop=prior_samples)


def trajectory(
    path: str | Path,
    trajectory: Tensor,
    labels: Tensor | None,
    prior_samples: Tensor | None = None,
    title: str = "",
    *,
    num_panels: int = 6,
    class_names: Sequence[str] | None = None,
    class_colors: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw y_T to y_0 of a trajectory [T+1, N, 2], start first, in `num_panels` panels over samples of the prior in gray.

    Raises:
        InputError: As for `latents`, or `num_panels` is below 2.
    """
    _checks.require(num_panels >= 2, "num_panels", "at least 2", num_panels)
    steps = _checks.tensor(trajectory, "trajectory").shape[0] - 1
    _checks.require(trajectory.dim() == 3 and steps >= 1, "trajectory", "shape [T+1, N, 2] with T >= 1", trajectory)
    entries = np.unique(np.linspace(0, steps, num_panels).round().astype(int))
    names = [f"$y_{{{steps - entry}}}$" for entry in entries]
    names[0], names[-1] = f"start, {names[0]}", "end, $z = y_0$"
    panels = [(name, trajectory[entry], labels) for name, entry in zip(names, entries, strict=True)]
    columns = -(-len(panels) // 2) if len(panels) > 4 else None  # two rows keep the panels legible
    return _scatter_panels(path, panels, title, class_names, overwrite, backdrop=prior_samples, columns=columns, formulas=True, colours=class_colors)


def grid(
    path: str | Path,
    rows: Sequence[str],
    columns: Sequence[str],
    panels: Mapping[tuple[str, str], tuple[Tensor, Tensor | None]],
    title: str = "",
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw a grid with panels (latents [N, 2], labels [N] or None) by (row, column); a row shares its axes, missing panels stay empty.

    Raises:
        InputError: As for `latents`, or there is no panel.
    """
    _checks.require(any((row, column) in panels for row in rows for column in columns), "panels", "at least one of the rows and columns", 0)
    drawn = {key: (_points(z, " ".join(key)), _classes(labels, len(z), " ".join(key))) for key, (z, labels) in panels.items()}
    count, side = 1 + max(int(classes.max(initial=-1)) for _, classes in drawn.values()), 2.3
    figure = new_figure(side * len(columns) + 0.3, side * len(rows) + 0.9)
    axes_grid = figure.subplots(len(rows), len(columns), sharex="row", sharey="row", squeeze=False)
    for row, line in zip(rows, axes_grid, strict=True):
        limits = _limits([points for (name, _), (points, _) in drawn.items() if name == row])
        for column, axes in zip(columns, line, strict=True):
            points, classes = drawn.get((row, column), (np.empty((0, 2)), np.empty(0, int)))
            _scatter(axes, points, classes, class_colours(count), side)
            _frame(axes, limits, column if row == rows[0] else "", points)
            if not len(points):
                axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", fontsize=9, color=GREY)
        line[0].set_ylabel(row, color=INK, fontsize=11, parse_math=False)
    _class_legend(figure, count, class_names, any(bool((classes < 0).any()) for _, classes in drawn.values()))
    return write(figure, path, title, overwrite)


def _scatter_panels(
    path: str | Path,
    panels: Sequence[tuple[str, Tensor, Tensor | None]],
    title: str,
    class_names: Sequence[str] | None,
    overwrite: bool,
    backdrop: Tensor | None = None,
    columns: int | None = None,
    formulas: bool = False,
    colours: Sequence[str] | None = None,
    counted: bool = False,
) -> Path:
    drawn = [(name, _points(points, name), _classes(labels, len(points), name)) for name, points, labels in panels]
    behind = None if backdrop is None else _points(backdrop, "prior_samples")
    count = 1 + max(int(classes.max(initial=-1)) for _, _, classes in drawn)
    paint = class_colours(count) if colours is None else list(colours)
    _checks.require(len(paint) >= count, "class_colors", f"at least {count} colors", len(paint))
    limits = _limits([points for _, points, _ in drawn] + ([] if behind is None else [behind]))
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    side = 3.9 if columns <= 2 else 3.0
    figure = new_figure(side * columns + 0.2, (side + 0.15) * rows + (0.6 if count else 0.3) + (0.3 if title else 0))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, points, classes) in zip(grid.flat, drawn, strict=False):
        if behind is not None:
            axes.scatter(*_spread(behind).T, s=_size(len(behind), side), c=FAINT, alpha=0.5, linewidths=0, rasterized=True)
        _scatter(axes, points, classes, paint, side)
        _frame(axes, limits, f"{name}, {len(points):,}" if counted else name, points, formulas)
    _name_axes(grid)
    _class_legend(figure, count, class_names, bool(any((classes < 0).any() for _, _, classes in drawn)), paint)
    return write(figure, path, title, overwrite)


def _points(value: Tensor, argument: str) -> np.ndarray:
    _checks.require(_checks.tensor(value, argument).dim() == 2 and value.shape[-1] == 2, argument, "latents of shape [N, 2], that is D = 2", value)
    return _checks.finite(value.detach(), argument).cpu().double().numpy()


def _classes(labels: Tensor | None, count: int, argument: str) -> np.ndarray:
    if labels is None:
        return np.full(count, -1)
    labels = _checks.tensor(torch.as_tensor(labels, device="cpu"), f"labels of {argument}", floating=False)
    whole = labels.dim() == 1 and len(labels) == count and not labels.is_floating_point()
    _checks.require(whole, f"labels of {argument}", f"whole numbers of shape [{count}]", labels)
    return labels.cpu().numpy().astype(int)


def _spread(points: np.ndarray) -> np.ndarray:
    return points[_order(len(points))]


def _order(count: int) -> np.ndarray:
    return mixed_order(count)[:_POINTS]


def _scatter(axes: Axes, points: np.ndarray, classes: np.ndarray, colours: list[str], side: float) -> None:
    order = _order(len(points))
    paint = np.array([*colours, UNLABELLED])[np.where(classes < 0, len(colours), classes)[order]]
    alpha = float(np.interp(len(order), (300, 3000, _POINTS), (0.9, 0.7, 0.4)))
    axes.scatter(*points[order].T, s=_size(len(order), side), c=paint, alpha=alpha, linewidths=0, rasterized=True)


def _size(count: int, side: float) -> float:
    """Marker area: smaller for more points and in a smaller panel."""
    return float(np.clip(10_000 / max(count, 1), 3.5, 16.0)) * side / 3.9


def _limits(clouds: Sequence[np.ndarray]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Square that contains all points, or all but 0.2% of each cloud where a few outliers would halve the scale."""
    clouds = [cloud for cloud in clouds if len(cloud)]
    if not clouds:
        return (-1.0, 1.0), (-1.0, 1.0)

    def box(outside: float) -> tuple[np.ndarray, float]:
        low = np.min([np.quantile(cloud, outside, axis=0) for cloud in clouds], axis=0)
        high = np.max([np.quantile(cloud, 1 - outside, axis=0) for cloud in clouds], axis=0)
        return (low + high) / 2, max(float((high - low).max()) / 2, 1e-3) * 1.06

    whole, core = box(0.0), box(0.001)
    centre, half = whole if whole[1] <= 2 * core[1] else core
    return (centre[0] - half, centre[0] + half), (centre[1] - half, centre[1] + half)


def _frame(axes: Axes, limits: tuple[tuple[float, float], tuple[float, float]], name: str, points: np.ndarray, formula: bool = False) -> None:
    (left, right), (low, high) = limits
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    frame(axes, name, formula=formula)
    outside = int(((points < (left, low)) | (points > (right, high))).any(axis=1).sum())
    if outside:
        place = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        axes.text(0.985, 0.015, f"{outside} outside", fontsize=7, color=GREY, **place)


def _name_axes(grid: np.ndarray) -> None:
    for axes in grid[-1]:
        axes.set_xlabel("latent 1", fontsize=9, color=GREY)
    for axes in grid[:, 0]:
        axes.set_ylabel("latent 2", fontsize=9, color=GREY)


def _class_legend(figure: Figure, count: int, names: Sequence[str] | None, unlabelled: bool, colours: Sequence[str] | None = None) -> None:
    if not count:
        return
    from matplotlib.lines import Line2D

    named = [str(index) for index in range(count)] if names is None else [str(name) for name in names]
    _checks.require(len(named) >= count, "class_names", f"at least {count} names", len(named))
    entries = list(zip(named, class_colours(count) if colours is None else colours, strict=False))[:count]
    entries += [("no class", UNLABELLED)] if unlabelled else []
    dots = [Line2D([], [], marker="o", linestyle="", markersize=6.5, markeredgewidth=0, color=colour) for _, colour in entries]
    widest = max(len(name) for name, _ in entries)
    columns = max(1, min(len(entries), int(figure.get_figwidth() * 12 / (widest + 3.5))))
    legend(figure, dots, [name for name, _ in entries], ncols=columns, **LEGEND)
