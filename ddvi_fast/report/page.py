"""The page: pieces of HTML, and the style that makes them legible by day, by night and on a telephone."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ddvi_fast.plots.style import PALETTE

_NIGHT = ("#7fa6e0", "#f5ad45", "#58b877", "#ff6f94", "#7fd6f5", "#c9b53a", "#b08ad6", "#eeb8a6", "#4cc0bd", "#b0d266")

_STYLE = """
:root { color-scheme: light dark; --ink: #22262c; --paper: #ffffff; --panel: #f5f6f8; --line: #d9dce1; --soft: #5b6370; --link: #2457a6; @DAY@ }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #15171b; --panel: #1f2228; --line: #3a3f48; --soft: #a5adb8; --link: #8db4f0;
    @NIGHT@ } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
p, li { max-width: 48rem; } .soft { color: var(--soft); } a { color: var(--link); } nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; } th { font-weight: 600; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; min-width: 0; }
.card svg { width: 100%; height: auto; display: block; } .card img { width: 100%; height: auto; display: block; border-radius: 4px; }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.legend span.run { margin-right: 1.2em; display: inline-block; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: .85rem; } summary { cursor: pointer; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document that asks nothing of a network."""
    day, night = (" ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours)) for colours in (PALETTE, _NIGHT))
    style = _STYLE.replace("@DAY@", day).replace("@NIGHT@", night)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head>{head}<title>{escape(title)}</title><style>{style}</style></head><body>',
            *body,
            "</body></html>",
            "",
        ]
    )


def section(name: str, heading: str, *pieces: str) -> str:
    """A part with a heading that can be linked to; nothing if there is nothing in it."""
    inner = "\n".join(piece for piece in pieces if piece)
    return f'<section id="{name}"><h2>{escape(heading)}</h2>\n{inner}</section>' if inner else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """A table that scrolls sideways where it is too wide; its cells are escaped, `text_columns` may break."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(_cell(value, number in text_columns) for number, value in enumerate(row)) + "</tr>\n" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str, breaks: bool) -> str:
    return f"<td{' class=' + chr(34) + 'text' + chr(34) if breaks else ''}>{escape(value)}</td>"


def legend(names: Sequence[str], colours: Sequence[int]) -> str:
    """Which colour is which run's."""
    entries = (
        f'<span class="run"><span class="chip" style="background: var(--c{colour})"></span>{escape(name)}</span>'
        for name, colour in zip(names, colours, strict=True)
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def cards(pieces: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Headings and what stands below them, side by side where there is room; `kind` is a class of the style."""
    inner = "".join(f'<div class="card"><h3>{escape(heading)}</h3>{piece}</div>\n' for heading, piece in pieces)
    return f'<div class="cards {kind}">{inner}</div>' if inner else ""


def image(path: Path, alternative: str) -> str:
    """A PNG file within the page."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{encoded}">'


def paragraph(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def folded(summary: str, text: str) -> str:
    """Text that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
