"""Pictures of latents, decoded grids, training curves and trajectories, drawn without a display and without global state.

matplotlib is loaded when a picture is drawn, through its objects alone: `pyplot`, its settings and its windows stay untouched.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ten hues that also differ in lightness, moved apart until eyes without red or green cones tell any two of them.
PALETTE = ("#4c79bd", "#eb9419", "#1e6b35", "#e83065", "#66ccee", "#8f7b0d", "#704b96", "#e6a792", "#1e908d", "#95bc47")
UNLABELLED = "#8a8f98"
_INK, _FAINT, _PANEL = "#2b2f36", "#c9cdd3", "#f7f8fa"
_RESERVED = ("step", "epoch", "phase", "seconds", "non_finite")
_FORMATS = (".png", ".pdf", ".svg")
_POINTS = 20_000  # a panel shows no more points than this: more only make a blot


def latents(
    path: str | Path,
    latents: Tensor,
    labels: Tensor | None,
    prior_samples: Tensor,
    prior_labels: Tensor | None = None,
    title: str = "",
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw latents [N, 2] by class [N] beside samples of the prior [M, 2] by theirs [M], on the same axes.

    Labels are whole numbers from 0; None, and labels below 0, are drawn in grey. Returns `path`.

    Raises:
        InputError: latents that are not two-dimensional, labels of another length, a file that stands there without `overwrite`.

    Example:
        >>> import tempfile
        >>> z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> latents(Path(tempfile.mkdtemp()) / "latents.png", z, torch.arange(50) % 10, z).name
        'latents.png'
    """
    panels = [("posterior samples", latents, labels), ("prior", prior_samples, prior_labels)]
    return _scatter_panels(path, panels, title, class_names, overwrite)


def comparison(
    path: str | Path,
    panels: Sequence[tuple[str, Tensor, Tensor | None]],
    title: str = "",
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw (title, latents [N, 2], labels [N] or None) side by side on the same axes: methods first, the prior last.

    Raises:
        InputError: as for `latents`, or no panel.
    """
    _checks.require(len(panels) > 0, "panels", "at least one", 0)
    return _scatter_panels(path, panels, title, class_names, overwrite)


def trajectory(
    path: str | Path,
    trajectory: Tensor,
    labels: Tensor | None,
    prior_samples: Tensor | None = None,
    title: str = "",
    *,
    num_panels: int = 6,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw y from T down to 0 in panels, from a trajectory [T+1, N, 2] with its start first; the prior lies behind in grey.

    Raises:
        InputError: as for `latents`, or fewer than two panels.
    """
    _checks.require(num_panels >= 2, "num_panels", "at least 2", num_panels)
    steps = _checks.tensor(trajectory, "trajectory").shape[0] - 1
    _checks.require(trajectory.dim() == 3 and steps >= 1, "trajectory", "shape [T+1, N, 2] with T >= 1", trajectory)
    entries = np.unique(np.linspace(0, steps, num_panels).round().astype(int))
    names = [f"$y_{{{steps - entry}}}$" for entry in entries]
    names[0], names[-1] = f"start, {names[0]}", "end, $z = y_0$"
    panels = [(name, trajectory[entry], labels) for name, entry in zip(names, entries, strict=True)]
    columns = -(-len(panels) // 2) if len(panels) > 4 else None  # two rows, so that each panel stays legible
    return _scatter_panels(path, panels, title, class_names, overwrite, backdrop=prior_samples, columns=columns)


def decoded_grid(
    path: str | Path,
    images: Tensor,
    title: str = "",
    *,
    columns: int | None = None,
    bounds: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Tile decoded images [R * C, H, W] or [R * C, 3, H, W], values in [0, 1], row by row from the top left.

    `columns` is C, by default the square root of the count. With `bounds` the axes are marked as latents: the first
    from low to high along a row, the second from high at the top to low.

    Raises:
        InputError: another shape, a count that does not fill the rows, values that are not finite, a file that stands there.
    """
    _checks.finite(_checks.tensor(images, "images"), "images")
    colour = images.dim() == 4 and images.shape[1] == 3
    _checks.require(len(images) > 0 and (images.dim() == 3 or colour), "images", "shape [R * C, H, W] or [R * C, 3, H, W]", images)
    columns = columns or int(len(images) ** 0.5)
    _checks.require(len(images) % columns == 0, "images", f"a multiple of {columns} images", len(images), "set columns")
    rows = len(images) // columns
    gap = max(1, images.shape[-1] // 20)
    framed = torch.nn.functional.pad(images.detach().cpu().float().clamp(0, 1), (gap,) * 4, value=1.0 if colour else 0.0)
    tiles = framed.reshape(rows, columns, *framed.shape[1:])
    order = (0, 3, 1, 4, 2) if colour else (0, 2, 1, 3)
    height, width = framed.shape[-2:]
    canvas = tiles.permute(order).reshape(rows * height, columns * width, *((3,) if colour else ())).numpy()

    figure = _figure(6.0, 6.0 * canvas.shape[0] / canvas.shape[1] + 0.3)
    axes = figure.add_subplot()
    extent = (bounds[0], bounds[1], bounds[0], bounds[1]) if bounds else None
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    _bare(axes)
    if bounds:
        axes.tick_params(bottom=True, left=True, labelbottom=True, labelleft=True, labelsize=8, color=_FAINT, labelcolor=_INK)
        axes.set_xlabel("$z_1$", color=_INK)
        axes.set_ylabel("$z_2$", color=_INK)
    _headline(figure, title)
    return _write(figure, path, overwrite)


def loss_terms(path: str | Path, records: Sequence[Mapping[str, Any]], title: str = "", *, overwrite: bool = False) -> Path:
    """Draw every named term of the records of a run's metrics over steps, a panel each, with its phases shaded.

    A phase that is logged in between another (an evaluation after each epoch) is drawn as dots of its own.

    Raises:
        InputError: records without a single number, a file that stands there.
    """
    names = list(dict.fromkeys(name for record in records for name, value in record.items() if name not in _RESERVED and value is not None))
    _checks.require(bool(names), "records", "at least one named term", f"{len(records)} records without any")
    spans, between = _phases(records)
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(3.6 * columns + 0.2, 2.1 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_term(axes, name, records, spans, between)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(names))
        if place < len(names) <= place + columns:  # nothing stands below it
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step", color=_INK, fontsize=9)
    _phase_legend(figure, spans, between)
    _headline(figure, title)
    return _write(figure, path, overwrite)


def class_colours(count: int) -> list[str]:
    """`count` colours: the palette, then its darker and lighter shades."""
    from matplotlib.colors import to_hex, to_rgb

    def shade(index: int) -> str:
        colour, turn = np.array(to_rgb(PALETTE[index % len(PALETTE)])), index // len(PALETTE)
        target, weight = (0.0 if turn % 2 else 1.0), 1 - 0.6 ** ((turn + 1) // 2)
        return to_hex(colour + (target - colour) * weight)

    return [shade(index) for index in range(count)]


def _scatter_panels(
    path: str | Path,
    panels: Sequence[tuple[str, Tensor, Tensor | None]],
    title: str,
    class_names: Sequence[str] | None,
    overwrite: bool,
    backdrop: Tensor | None = None,
    columns: int | None = None,
) -> Path:
    drawn = [(name, _points(points, name), _classes(labels, len(points), name)) for name, points, labels in panels]
    behind = None if backdrop is None else _points(backdrop, "prior_samples")
    count = 1 + max(int(classes.max(initial=-1)) for _, _, classes in drawn)
    limits = _limits([points for _, points, _ in drawn] + ([] if behind is None else [behind]))
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    side = 3.9 if columns <= 2 else 3.0
    figure = _figure(side * columns + 0.2, (side + 0.15) * rows + (0.6 if count else 0.3) + (0.3 if title else 0))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, points, classes) in zip(grid.flat, drawn, strict=False):
        if behind is not None:
            axes.scatter(*_spread(behind).T, s=_size(len(behind), side), c=_FAINT, alpha=0.5, linewidths=0, rasterized=True)
        _scatter(axes, points, classes, class_colours(count), side)
        _frame(axes, limits, name, points)
    _class_legend(figure, count, class_names, bool(any((classes < 0).any() for _, _, classes in drawn)))
    _headline(figure, title)
    return _write(figure, path, overwrite)


def _points(value: Tensor, argument: str) -> np.ndarray:
    _checks.require(_checks.tensor(value, argument).dim() == 2 and value.shape[-1] == 2, argument, "latents of shape [N, 2], that is D = 2", value)
    return _checks.finite(value.detach(), argument).cpu().double().numpy()


def _classes(labels: Tensor | None, count: int, argument: str) -> np.ndarray:
    if labels is None:
        return np.full(count, -1)
    labels = _checks.tensor(torch.as_tensor(labels), f"labels of {argument}", floating=False)
    whole = labels.dim() == 1 and len(labels) == count and not labels.is_floating_point()
    _checks.require(whole, f"labels of {argument}", f"whole numbers of shape [{count}]", labels)
    return labels.cpu().numpy().astype(int)


def _spread(points: np.ndarray) -> np.ndarray:
    return points[_order(len(points))]


def _order(count: int) -> np.ndarray:
    """A fixed order that mixes neighbours (golden-ratio steps), so that no class is painted over another, cut to what a panel can show."""
    return np.argsort(np.arange(count) * 0.6180339887498949 % 1.0, kind="stable")[:_POINTS]


def _scatter(axes: Axes, points: np.ndarray, classes: np.ndarray, colours: list[str], side: float) -> None:
    order = _order(len(points))
    paint = np.array([*colours, UNLABELLED])[np.where(classes < 0, len(colours), classes)[order]]
    alpha = float(np.interp(len(order), (300, 3000, _POINTS), (0.9, 0.7, 0.4)))
    axes.scatter(*points[order].T, s=_size(len(order), side), c=paint, alpha=alpha, linewidths=0, rasterized=True)


def _size(count: int, side: float) -> float:
    """Marker area: smaller the more points share a panel, and in a smaller panel."""
    return float(np.clip(10_000 / max(count, 1), 3.5, 16.0)) * side / 3.9


def _limits(clouds: Sequence[np.ndarray]) -> tuple[tuple[float, float], tuple[float, float]]:
    """A square that holds every point, or all but 0.2% of each cloud where a few strays would shrink the picture by half."""
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


def _frame(axes: Axes, limits: tuple[tuple[float, float], tuple[float, float]], name: str, points: np.ndarray) -> None:
    (left, right), (low, high) = limits
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_facecolor(_PANEL)
    axes.set_title(name, fontsize=11, color=_INK, pad=6)
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=8, length=2.5, width=0.6, color=_FAINT, labelcolor="#6b7280")
    axes.spines[:].set(linewidth=0.6, color=_FAINT)
    outside = int(((points < (left, low)) | (points > (right, high))).any(axis=1).sum())
    if outside:
        place = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        axes.text(0.985, 0.015, f"{outside} outside", fontsize=7, color="#6b7280", **place)


def _class_legend(figure: Figure, count: int, names: Sequence[str] | None, unlabelled: bool) -> None:
    if not count:
        return
    from matplotlib.lines import Line2D

    named = [str(index) for index in range(count)] if names is None else [str(name) for name in names]
    _checks.require(len(named) >= count, "class_names", f"at least {count} names", len(named))
    entries = [*zip(named, class_colours(count), strict=False)] + ([("no class", UNLABELLED)] if unlabelled else [])
    dots = [Line2D([], [], marker="o", linestyle="", markersize=6.5, markeredgewidth=0, color=colour, label=name) for name, colour in entries]
    widest = max(len(name) for name, _ in entries)
    columns = max(1, min(len(entries), int(figure.get_figwidth() * 12 / (widest + 3.5))))
    figure.legend(handles=dots, loc="outside lower center", ncols=columns, **_LEGEND)


_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": _INK, "handletextpad": 0.1, "columnspacing": 1.1}


def _phases(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Phases that follow one another, with first and last step, and those that are logged in between."""
    spans: dict[str, tuple[float, float]] = {}
    for record in records:
        phase, step = str(record.get("phase", "")), record["step"]
        first, last = spans.get(phase, (step, step))
        spans[phase] = (min(first, step), max(last, step))
    following: dict[str, tuple[float, float]] = {}
    for phase, (first, last) in sorted(spans.items(), key=lambda item: item[1][0]):
        if all(first >= end for _, end in following.values()):
            following[phase] = (first, last)
    return following, [phase for phase in spans if phase not in following]


def _draw_term(axes: Axes, name: str, records: Sequence[Mapping[str, Any]], spans: Mapping[str, Any], between: Sequence[str]) -> None:
    edges = [first for first, _ in spans.values()] + [last for _, last in spans.values()][-1:]
    for index, (left, right) in enumerate(itertools.pairwise(edges)):
        axes.axvspan(left, right, color=_phase_shade(index), linewidth=0, zorder=0)
    steps, values = _series(records, name, lambda phase: phase in spans)
    crowded = len(steps) > 150
    axes.plot(steps, values, color=PALETTE[0], linewidth=0.8 if crowded else 1.5, alpha=0.3 if crowded else 1.0)
    if crowded:
        axes.plot(*_smooth(steps, values), color=PALETTE[0], linewidth=1.6)
    for index, phase in enumerate(between):
        axes.plot(*_series(records, name, lambda other, wanted=phase: other == wanted), "o-", color=_dot_colour(index), markersize=3, linewidth=0.9)
    if edges[-1] > edges[0]:
        axes.set_xlim(edges[0], edges[-1])
    axes.set_title(name, fontsize=10, color=_INK, loc="left", pad=4)
    axes.grid(axis="y", color="#ffffff" if len(spans) > 1 else "#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=8, length=2.5, width=0.6, color=_FAINT, labelcolor="#6b7280")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(linewidth=0.6, color=_FAINT)


def _series(records: Sequence[Mapping[str, Any]], name: str, chosen: Callable[[str], bool]) -> tuple[np.ndarray, np.ndarray]:
    rows = [(r["step"], np.nan if r[name] is None else r[name]) for r in records if name in r and chosen(str(r.get("phase", "")))]
    steps, values = np.array(rows, dtype=float).reshape(-1, 2).T
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over a fiftieth of the run around each point, fewer at the ends; a NaN counts for nothing."""
    window = np.ones(max(3, len(values) // 50) | 1)
    known = np.isfinite(values)
    weight = np.convolve(known.astype(float), window, mode="same")
    total = np.convolve(np.where(known, values, 0.0), window, mode="same")
    return steps, np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def _phase_shade(index: int) -> str:
    return ("#e9eff8", "#fbf0dd", "#e6f3e9", "#f8e6ec")[index % 4]


def _dot_colour(index: int) -> str:
    return PALETTE[1 + index % (len(PALETTE) - 1)]


def _phase_legend(figure: Figure, spans: Mapping[str, Any], between: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shades: list[Any] = [Patch(color=_phase_shade(i), label=phase) for i, phase in enumerate(spans)] if len(spans) > 1 else []
    dots = [Line2D([], [], marker="o", markersize=3, linewidth=0.9, color=_dot_colour(i), label=phase) for i, phase in enumerate(between)]
    if shades + dots:
        figure.legend(handles=shades + dots, loc="outside lower center", ncols=6, **{**_LEGEND, "handletextpad": 0.5})


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _headline(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=13, color=_INK)


def _bare(axes: Axes) -> None:
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False, width=0.6, length=2.5)
    axes.spines[:].set_visible(False)


def _write(figure: Figure, path: str | Path, overwrite: bool) -> Path:
    """Save beside and rename: a picture on the disk is always whole."""
    path = Path(path)
    _checks.require(path.suffix in _FORMATS, "path", f"a name that ends in {', '.join(_FORMATS)}", str(path))
    _checks.require(overwrite or not path.exists(), "path", "a new file", str(path), "overwrite=True replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(fresh, dpi=150)
    os.replace(fresh, path)
    return path
