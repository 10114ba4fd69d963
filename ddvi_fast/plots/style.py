"""Colors, canvas, frames and writing of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddvi_fast import _checks, _files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ten hues that also differ in lightness, any two of which are distinguishable with red-green color blindness.
PALETTE = ("#4c79bd", "#eb9419", "#1e6b35", "#e83065", "#66ccee", "#8f7b0d", "#704b96", "#e6a792", "#1e908d", "#95bc47")
UNLABELLED = "#8a8f98"
INK, FAINT, PANEL, GREY = "#2b2f36", "#c9cdd3", "#f7f8fa", "#6b7280"
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handletextpad": 0.1, "columnspacing": 1.1}
_FORMATS = (".png", ".pdf", ".svg")


def class_colours(count: int) -> list[str]:
    """Colors of `count` classes: the palette, then its darker and lighter shades."""
    from matplotlib.colors import to_hex, to_rgb

    def shade(index: int) -> str:
        colour, turn = np.array(to_rgb(PALETTE[index % len(PALETTE)])), index // len(PALETTE)
        target, weight = (0.0 if turn % 2 else 1.0), 1 - 0.6 ** ((turn + 1) // 2)
        return to_hex(colour + (target - colour) * weight)

    return [shade(index) for index in range(count)]


def oklch(lightness: float, hue: float, chroma: float = 0.17) -> str:
    """Color of a hue (degrees) and lightness in the perceptually uniform space OKLCH, as strong as sRGB has it, up to `chroma`."""
    from matplotlib.colors import to_hex

    strengths = np.linspace(0, chroma, 64)
    a, b = strengths * np.cos(np.radians(hue)), strengths * np.sin(np.radians(hue))
    cones = np.stack([lightness + 0.3963377774 * a + 0.2158037573 * b, lightness - 0.1055613458 * a - 0.0638541728 * b,
                      lightness - 0.0894841775 * a - 1.2914855480 * b]) ** 3  # fmt: skip
    linear = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                       [-0.0041960863, -0.7034186147, 1.7076147010]]) @ cones  # fmt: skip
    inside = np.flatnonzero(((linear >= 0) & (linear <= 1)).all(0))[-1]
    found = linear[:, inside]
    return to_hex(np.where(found <= 0.0031308, 12.92 * found, 1.055 * found ** (1 / 2.4) - 0.055))


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, without a display; `InputError` where matplotlib is not installed."""
    return _checks.library("matplotlib.figure", "train").Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def mixed_order(count: int) -> np.ndarray:
    """Fixed order of points that mixes neighbors (golden-ratio steps), so that no class is painted over another, int64 [count]."""
    return np.argsort(np.arange(count) * 0.6180339887498949 % 1.0, kind="stable")


def frame(axes: Axes, name: str, labelsize: float = 8, formula: bool = False) -> None:
    """Style title, background, ticks and spines of a panel; a title that is no `formula` is drawn as it stands."""
    axes.set_title(name, fontsize=11, color=INK, pad=6, parse_math=formula)
    axes.set_facecolor(PANEL)
    axes.tick_params(labelsize=labelsize, length=2.5, width=0.6, color=FAINT, labelcolor=GREY)
    axes.spines[:].set(linewidth=0.6, color=FAINT)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], **options: Any) -> list[Any]:
    """Draw a legend below the panels, with names as they stand, and return its texts."""
    # Names that begin with an underscore would be left out, and dollar signs would begin a formula.
    drawn = figure.legend(handles, ["-"] * len(handles), loc="outside lower center", **options)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return drawn.get_texts()


def bare(axes: Axes) -> None:
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False, width=0.6, length=2.5)
    axes.spines[:].set_visible(False)


def write(figure: Figure, path: str | Path, title: str, overwrite: bool) -> Path:
    """Save a picture as a whole or not at all; InputError where the file exists, unless `overwrite`."""
    path = Path(path)
    _checks.require(path.suffix in _FORMATS, "path", f"a name that ends in {', '.join(_FORMATS)}", str(path))
    _checks.require(overwrite or not path.exists(), "path", "a new file", str(path), "overwrite=True replaces it")
    if title:
        figure.suptitle(title, fontsize=13, color=INK, parse_math=False)
    with _files.replacing(path) as fresh:
        figure.savefig(fresh, dpi=150)
    return path
