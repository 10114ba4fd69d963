"""Interactive map as one HTML file that needs no other file and no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ddvi_fast import _checks, _files
from ddvi_fast.plots.ancestry import LATENTS, population_colours, population_markers
from ddvi_fast.plots.style import class_colours

_MARKERS = "os^Dv"  # that the page draws; others are circles
_PAGE = Path(__file__).with_suffix(".html")


def interactive_map(
    path: str | Path,
    places: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    groups: Sequence[str],
    hover: Mapping[str, Sequence[object]],
    title: str = "",
    *,
    sets: Sequence[str] | None = None,
    cluster: Sequence[int] | None = None,
    probability: Sequence[float] | None = None,
    axes: tuple[str, str] = LATENTS,
    overwrite: bool = False,
) -> Path:
    """Write an interactive map of people as one HTML file.

    The page zooms, moves, searches, hides populations, colors by label, cluster or probability, shows details under the pointer, and saves the
    people who are selected as a table.

    Args:
        path: File to write; its name ends in ``.html``.
        places: Places [N, 2].
        labels: Population of each person, integers [N].
        names, groups: Name of each population, and name of the group to which it belongs.
        hover: N values under each heading, shown as text for the person under the pointer.
        title: Title of the page.
        sets: Set of each person, such as ``training`` and ``test`` (default one set); all but the first set are drawn with an outline.
        cluster, probability: Most probable cluster of each person, and its probability (default none).
        axes: Names of the axes.
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: Shapes do not match, or the file exists.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "map.html"
        >>> interactive_map(path, np.eye(2), np.array([0, 1]), ["FIN", "YRI"], ["EUR", "AFR"], {"sample": ["a", "b"]}).name
        'map.html'
    """
    places, labels = np.asarray(places, float), np.asarray(labels)
    fits = places.shape == (len(labels), 2) and len(labels) > 0 and bool(np.isfinite(places).all())
    _checks.require(fits, "places", f"finite places of shape [{len(labels)}, 2]", f"shape {list(places.shape)}")
    further = {"sets": sets, "cluster": cluster, "probability": probability}
    for heading, values in [*((f"hover[{heading}]", values) for heading, values in hover.items()), *further.items()]:
        _checks.require(values is None or len(values) == len(labels), heading, f"{len(labels)} values", 0 if values is None else len(values))
    clusters = None if cluster is None else [int(each) for each in cluster]
    data = {
        "x": places[:, 0].round(5).tolist(),
        "y": places[:, 1].round(5).tolist(),
        "label": labels.astype(int).tolist(),
        "names": [str(name) for name in names],
        "groups": [str(group) for group in groups],
        "colours": population_colours(names, groups),
        "marker": [max(_MARKERS.find(marker), 0) for marker in population_markers(names, groups)],
        "set": [""] * len(labels) if sets is None else [str(each) for each in sets],
        "cluster": clusters,
        "clusterColours": None if clusters is None else class_colours(max(clusters) + 1),
        "probability": None if probability is None else [round(float(each), 4) for each in probability],
        "axes": list(axes),
        "hover": {str(heading): [str(value) for value in values] for heading, values in hover.items()},
    }
    return fill_page(path, _PAGE, title, data, overwrite)


def fill_page(path: str | Path, template: Path, title: str, data: Mapping[str, Any], overwrite: bool) -> Path:
    """Write a page from a template with the parts ``@TITLE@`` and ``@DATA@``, plain values as JSON.

    Raises:
        InputError: The name does not end in ``.html``, or the file exists.
    """
    path = Path(path)
    _checks.require(path.suffix == ".html", "path", "a name that ends in .html", str(path))
    _checks.require(overwrite or not path.exists(), "path", "a new file", str(path), "overwrite=True replaces it")
    # A name may contain anything, even the end of a script.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"@TITLE@": escape(title), "@DATA@": text}
    # In one go: a title may contain the name of another part.
    _files.write_text(path, re.sub("@TITLE@|@DATA@", lambda found: parts[found[0]], template.read_text(encoding="utf-8")))
    return path
