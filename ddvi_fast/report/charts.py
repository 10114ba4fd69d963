"""Charts as inline SVG with the colors of the page, for light and dark mode."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddvi_fast.plots.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders in the drawing for colors of the page.
_INK, _GRID = "#010203", "#030201"
COLOURS = len(PALETTE)
_WIDTH, _HEIGHT = 4.6, 2.6
_POINTS = 400  # largest number of points of a curve
_SETTLING = 0.05  # fraction of a curve that does not set the axes, because the drop of the first steps would flatten all the rest


def line_chart(curves: Sequence[tuple[Sequence[float], Sequence[float]]], across: str, colours: Sequence[int] | None = None) -> str:
    """Draw curves (x, y) as an SVG element.

    Args:
        curves: Points (x, y) of each curve. The axes cover all but their first twentieth.
        across: Label of the horizontal axis.
        colours: Number of the color of each curve (default: its index).
    """
    figure, axes = _canvas(across)
    for number, (x, y) in enumerate(curves):
        thin = max(1, len(x) // _POINTS)
        colour, marker = _stand_in(number if colours is None else colours[number]), "o" if len(x) < 3 else ""
        axes.plot(x[::thin], y[::thin], color=colour, linewidth=1.6, marker=marker)
    settled = [value for _, y in curves for value in y[int(_SETTLING * len(y)) :] if math.isfinite(value)]
    if settled and min(settled) < max(settled):
        margin = 0.05 * (max(settled) - min(settled))
        axes.set_ylim(min(settled) - margin, max(settled) + margin)
    return _svg(figure)


def bar_chart(series: Sequence[Sequence[float]], across: str, colours: Sequence[int]) -> str:
    """Draw values at n, ..., 2, 1 from left to right, series side by side, as an SVG element."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas(across)
    for (values, offset), colour in zip(_side_by_side(series), colours, strict=True):
        axes.bar([len(values) - place - offset for place in range(len(values))], values, _width(series), color=_stand_in(colour))
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return _svg(figure)


def group_chart(series: Sequence[Sequence[float]], groups: Sequence[str], across: str, colours: Sequence[int]) -> str:
    """Draw one group of bars for each name in `groups`, series side by side, as an SVG element."""
    figure, axes = _canvas(across)
    for (values, offset), colour in zip(_side_by_side(series), colours, strict=True):
        axes.bar([place + offset for place in range(len(values))], values, _width(series), color=_stand_in(colour))
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups)
    return _svg(figure)


def _width(series: Sequence[Sequence[float]]) -> float:
    """Width of a bar."""
    return 0.8 / max(1, len(series))


def _side_by_side(series: Sequence[Sequence[float]]) -> list[tuple[Sequence[float], float]]:
    """Each series with the distance of its bars from the middle of their group."""
    return [(values, (number - (len(series) - 1) / 2) * _width(series)) for number, values in enumerate(series)]


def _canvas(across: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across, color=_INK, fontsize=10)
    axes.tick_params(labelsize=10, colors=_INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=6)
    return figure, axes


def _stand_in(number: int) -> str:
    return f"#0405{number % COLOURS:02x}"


def _svg(figure: Figure) -> str:
    """The drawing without XML header, date and random names, with the colors of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for number in range(COLOURS):
        text = text.replace(_stand_in(number), f"var(--c{number})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text.replace(_INK, "currentColor").replace(_GRID, "var(--line)"), flags=re.S)
    return _with_own_ids(text)


def _with_own_ids(text: str) -> str:
    """Give the parts names that are unique within a page and the same in every build."""
    found = dict.fromkeys(re.findall(r'id="([^"]+)"', text))
    for number, name in enumerate(found):
        text = re.sub(rf'(id="|href="#|url\(#){re.escape(name)}(?=["\)])', rf"\g<1>@-{number}", text)
    return text.replace("@-", f"c{hashlib.sha256(text.encode()).hexdigest()[:8]}-")
