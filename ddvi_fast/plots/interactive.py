"""A map to look around in with a browser: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ddvi_fast import _checks, _files
from ddvi_fast.plots.ancestry import population_colours

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@TITLE@</title><style>
body { margin: 0; font: 14px system-ui, sans-serif; color: #2b2f36; display: flex; height: 100vh; }
#map { flex: 1; position: relative; background: #f7f8fa; } canvas { width: 100%; height: 100%; display: block; cursor: grab; }
#side { width: 15em; padding: 1em; overflow: auto; box-sizing: border-box; } h1 { font-size: 15px; margin: 0 0 .4em; }
h2 { font-size: 13px; margin: .8em 0 .2em; cursor: pointer; } .entry { cursor: pointer; padding: 1px 0; } .off { opacity: .3; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .5em; } p { color: #6b7280; margin: .3em 0; }
#tip { position: absolute; display: none; background: white; border: 1px solid #c9cdd3; border-radius: 4px; padding: 4px 8px;
  pointer-events: none; white-space: pre; box-shadow: 0 1px 4px #0002; }
</style></head><body><div id="map"><canvas></canvas><div id="tip"></div></div>
<div id="side"><h1>@TITLE@</h1><p>Wheel to zoom, drag to move, double click to see all. Click a name to hide it.</p><div id="legend"></div></div>
<script id="data" type="application/json">@DATA@</script><script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d"), tip = document.getElementById("tip");
const hidden = new Set(), count = data.x.length;
let scale = 1, left = 0, top_ = 0, drag = null;
function place(i) { return [data.x[i] * scale + left, -data.y[i] * scale + top_]; }
function fit() {
  const box = canvas.getBoundingClientRect(), x = data.x, y = data.y;
  const low = a => a.reduce((m, v) => Math.min(m, v), Infinity), high = a => a.reduce((m, v) => Math.max(m, v), -Infinity);
  const [x0, x1, y0, y1] = [low(x), high(x), low(y), high(y)];
  scale = 0.92 * Math.min(box.width / (x1 - x0 || 1), box.height / (y1 - y0 || 1));
  left = box.width / 2 - scale * (x0 + x1) / 2; top_ = box.height / 2 + scale * (y0 + y1) / 2; draw();
}
function draw() {
  const box = canvas.getBoundingClientRect(), dense = window.devicePixelRatio || 1;
  canvas.width = box.width * dense; canvas.height = box.height * dense; pen.setTransform(dense, 0, 0, dense, 0, 0);
  for (let i = 0; i < count; i++) {
    if (hidden.has(data.label[i])) continue;
    const [px, py] = place(i);
    pen.globalAlpha = 0.8; pen.fillStyle = data.colours[data.label[i]]; pen.beginPath(); pen.arc(px, py, 3.5, 0, 7); pen.fill();
  }
}
function nearest(px, py) {
  let found = -1, best = 64;
  for (let i = 0; i < count; i++) {
    if (hidden.has(data.label[i])) continue;
    const [x, y] = place(i), d = (x - px) ** 2 + (y - py) ** 2;
    if (d < best) { best = d; found = i; }
  }
  return found;
}
canvas.addEventListener("mousemove", e => {
  if (drag) { left += e.offsetX - drag[0]; top_ += e.offsetY - drag[1]; drag = [e.offsetX, e.offsetY]; draw(); return; }
  const i = nearest(e.offsetX, e.offsetY);
  tip.style.display = i < 0 ? "none" : "block";
  if (i < 0) return;
  tip.textContent = Object.entries(data.hover).map(([name, values]) => name + ": " + values[i]).join("\\n");
  tip.style.left = Math.min(e.offsetX + 14, canvas.clientWidth - tip.offsetWidth - 4) + "px"; tip.style.top = e.offsetY + 14 + "px";
});
canvas.addEventListener("mousedown", e => { drag = [e.offsetX, e.offsetY]; });
window.addEventListener("mouseup", () => { drag = null; });
canvas.addEventListener("dblclick", fit);
canvas.addEventListener("wheel", e => {
  e.preventDefault(); const f = Math.exp(-0.0015 * e.deltaY);
  left = e.offsetX - f * (e.offsetX - left); top_ = e.offsetY - f * (e.offsetY - top_); scale *= f; draw();
}, { passive: false });
const legend = document.getElementById("legend");
function show(element, labels, hide) { labels.forEach(l => hide ? hidden.add(l) : hidden.delete(l)); refresh(); }
function refresh() { document.querySelectorAll(".entry").forEach(e => e.classList.toggle("off", hidden.has(+e.dataset.label))); draw(); }
[...new Set(data.groups)].sort().forEach(group => {
  const members = data.names.map((_, l) => l).filter(l => data.groups[l] === group);
  const head = legend.appendChild(document.createElement("h2")); head.textContent = group;
  head.onclick = () => show(head, members, members.some(l => !hidden.has(l)));
  members.forEach(l => {
    const row = legend.appendChild(document.createElement("div")); row.className = "entry"; row.dataset.label = l;
    const dot = row.appendChild(document.createElement("span")); dot.className = "dot"; dot.style.background = data.colours[l];
    row.append(data.names[l]); row.onclick = () => show(row, [l], !hidden.has(l));
  });
});
window.addEventListener("resize", fit); fit();
</script></body></html>
"""


def interactive_map(
    path: str | Path,
    places: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    groups: Sequence[str],
    hover: Mapping[str, Sequence[object]],
    title: str = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a map of places [N, 2] as one HTML file: zoom, move, hide populations, and what `hover` knows of the person under the pointer.

    Args:
        path: ends in ``.html``.
        places, labels: of N people; labels are whole numbers into `names`.
        names, groups: of the populations.
        hover: heading -> N values, shown as text.
        title: of the page.
        overwrite: replace the file.

    Raises:
        InputError: shapes that do not fit, a file that stands there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "map.html"
        >>> interactive_map(path, np.eye(2), np.array([0, 1]), ["FIN", "YRI"], ["EUR", "AFR"], {"sample": ["a", "b"]}).name
        'map.html'
    """
    path, places, labels = Path(path), np.asarray(places, float), np.asarray(labels)
    _checks.require(path.suffix == ".html", "path", "a name that ends in .html", str(path))
    _checks.require(overwrite or not path.exists(), "path", "a new file", str(path), "overwrite=True replaces it")
    fits = places.shape == (len(labels), 2) and len(labels) > 0 and bool(np.isfinite(places).all())
    _checks.require(fits, "places", f"finite places of shape [{len(labels)}, 2]", f"shape {list(places.shape)}")
    for heading, values in hover.items():
        _checks.require(len(values) == len(labels), f"hover[{heading}]", f"{len(labels)} values", len(values))
    data = {
        "x": places[:, 0].round(5).tolist(),
        "y": places[:, 1].round(5).tolist(),
        "label": labels.astype(int).tolist(),
        "names": [str(name) for name in names],
        "groups": [str(group) for group in groups],
        "colours": population_colours(names, groups),
        "hover": {str(heading): [str(value) for value in values] for heading, values in hover.items()},
    }
    # A name may hold anything, the end of a script too.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    safe = title.replace("&", "&amp;").replace("<", "&lt;")
    _files.write_text(path, _PAGE.replace("@TITLE@", safe).replace("@DATA@", text))
    return path
