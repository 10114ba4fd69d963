"""Pictures of the terms of a loss over the steps of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, GREY, INK, LEGEND, PALETTE, legend, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RESERVED = ("step", "epoch", "phase", "seconds", "non_finite")


def loss_terms(path: str | Path, records: Sequence[Mapping[str, Any]], title: str = "", *, overwrite: bool = False) -> Path:
    """Draw each term of the records of a run over steps in a panel, with shaded phases.

    A phase that is logged during another one (an evaluation after each epoch) is drawn as dots.

    Args:
        path: File of the picture.
        records: Records of the metrics file of a run.
        title: Title of the picture.
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: The records contain no number, or the file exists.
    """
    names = list(dict.fromkeys(name for record in records for name, value in record.items() if name not in _RESERVED and value is not None))
    _checks.require(bool(names), "records", "at least one named term", f"{len(records)} records without any")
    spans, between = _phases(records)
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(3.6 * columns + 0.2, 2.1 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_term(axes, name, records, spans, between)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(names))
        if place < len(names) <= place + columns:  # the lowest panel of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step", color=INK, fontsize=9)
    _phase_legend(figure, spans, between)
    return write(figure, path, title, overwrite)


def _phases(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """First and last step of the phases that follow one another, and the phases that are logged during others."""
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
    axes.set_title(name, fontsize=10, color=INK, loc="left", pad=4, parse_math=False)
    axes.grid(axis="y", color="#ffffff" if len(spans) > 1 else "#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=8, length=2.5, width=0.6, color=FAINT, labelcolor=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(linewidth=0.6, color=FAINT)


def _series(records: Sequence[Mapping[str, Any]], name: str, chosen: Callable[[str], bool]) -> tuple[np.ndarray, np.ndarray]:
    rows = [(r["step"], np.nan if r[name] is None else r[name]) for r in records if name in r and chosen(str(r.get("phase", "")))]
    steps, values = np.array(rows, dtype=float).reshape(-1, 2).T
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moving average over a fiftieth of the run, over fewer points at the ends and without NaN."""
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

    following = list(spans) if len(spans) > 1 else []
    shades: list[Any] = [Patch(color=_phase_shade(i)) for i in range(len(following))]
    dots = [Line2D([], [], marker="o", markersize=3, linewidth=0.9, color=_dot_colour(i)) for i in range(len(between))]
    if shades + dots:
        legend(figure, shades + dots, [*following, *between], ncols=6, **{**LEGEND, "handletextpad": 0.5})
