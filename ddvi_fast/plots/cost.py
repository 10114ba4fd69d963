"""Pictures of a metric against what it cost, one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.plots.style import FAINT, INK, LEGEND, class_colours, frame, legend, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = tuple[Sequence[float], Sequence[float]]  # numbers along x and along y


def curves(
    path: str | Path,
    rows: Sequence[str],
    columns: Sequence[str],
    panels: Mapping[tuple[str, str], Mapping[str, Line]],
    title: str = "",
    *,
    ylabel: str = "",
    overwrite: bool = False,
) -> Path:
    """Draw a grid of panels with one line a method; x is logarithmic, and a row shares its y.

    Args:
        path: File of the picture, which is returned.
        rows: Headings of the rows, such as data sets.
        columns: Labels of x, one a column, such as units of cost.
        panels: Lines ``(x, y)`` by method, by row and column; x above 0.
        title: Title of the picture.
        ylabel: Label of y.
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: There is no line, a line has no points or other numbers of x and y, an x is not positive, or the file exists.

    Example:
        >>> import tempfile
        >>> lines = {"Gaussian": ([10, 20], [99.5, 97.0]), "diffusion": ([10, 20], [99.0, 96.1])}
        >>> curves(Path(tempfile.mkdtemp()) / "curves.png", ["MNIST"], ["seconds"], {("MNIST", "seconds"): lines}, ylabel="NLL").name
        'curves.png'
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    _checks.require(bool(names), "panels", "at least one line", 0)
    colours = dict(zip(names, class_colours(len(names)), strict=True))
    width = max(7.5, 4.2 * len(columns) + 0.3)  # inches, wide enough for the title
    figure = new_figure(width, 3.0 * len(rows) + 0.9)
    grid = figure.subplots(len(rows), len(columns), sharey="row", squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        for column, axes in zip(columns, line, strict=True):
            for name, (x, y) in panels.get((row, column), {}).items():
                axes.plot(*_points(x, y, name), "o-", color=colours[name], markersize=3.5, linewidth=1.4)
            _logarithmic(axes)
            frame(axes, row if column == columns[0] and len(rows) > 1 else "")
            axes.set_xlabel(column, color=INK, fontsize=9, parse_math=False)
        line[0].set_ylabel(ylabel, color=INK, fontsize=9, parse_math=False)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[name], marker="o", markersize=3.5, linewidth=1.4) for name in names]
    fitting = int(width / (0.7 + 0.08 * max(map(len, names))))  # a handle, and the letters of the longest name
    legend(figure, handles, names, ncols=max(1, fitting), **{**LEGEND, "handletextpad": 0.5})
    return write(figure, path, title, overwrite)


def _logarithmic(axes: Axes) -> None:
    """Scale x by logarithms, with ticks at 1, 2 and 5 times powers of ten and units such as k and M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=1.5, width=0.6, color=FAINT)


def _points(x: Sequence[float], y: Sequence[float], name: str) -> tuple[np.ndarray, np.ndarray]:
    along, values = np.asarray(x, float), np.asarray(y, float)
    _checks.require(along.ndim == 1 and len(along) > 0 and along.shape == values.shape, name, "as many numbers of x as of y", (len(x), len(y)))
    _checks.require(bool((along > 0).all()), name, "positive numbers of x", float(along.min()))
    order = np.argsort(along, kind="stable")
    return along[order], values[order]
