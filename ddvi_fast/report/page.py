"""Pieces of HTML of a report, and their style sheet for light and dark mode, wide and narrow screens."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ddvi_fast.plots.style import PALETTE

_NIGHT = ("#7fa6e0", "#f5ad45", "#58b877", "#ff6f94", "#7fd6f5", "#c9b53a", "#b08ad6", "#eeb8a6", "#4cc0bd", "#b0d266")

_STYLE = Path(__file__).with_suffix(".css")


def page(title: str, body: Iterable[str]) -> str:
    """A complete document that loads nothing else."""
    day, night = (" ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours)) for colours in (PALETTE, _NIGHT))
    style = _STYLE.read_text(encoding="utf-8").replace("@DAY@", day).replace("@NIGHT@", night)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    start = f'<html lang="en"><head>{head}<title>{escape(title)}</title><style>{style}</style></head><body>'
    return "\n".join(["<!doctype html>", start, *body, "</body></html>", ""])


def section(name: str, heading: str, *pieces: str) -> str:
    """A section with a heading and an anchor; the empty string where all pieces are empty."""
    inner = "\n".join(piece for piece in pieces if piece)
    return f'<section id="{name}"><h2>{escape(heading)}</h2>\n{inner}</section>' if inner else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of escaped cells that scrolls horizontally where it is too wide."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>\n" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def legend(names: Sequence[str], colours: Sequence[int]) -> str:
    """Legend with the colour of each run."""
    entries = (
        f'<span class="run"><span class="chip" style="background: var(--c{colour})"></span>{escape(name)}</span>'
        for name, colour in zip(names, colours, strict=True)
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def cards(pieces: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Cards of (heading, content), side by side where there is room; `kind` is a class of the style sheet."""
    inner = "".join(f'<div class="card"><h3>{escape(heading)}</h3>{piece}</div>\n' for heading, piece in pieces)
    return f'<div class="cards {kind}">{inner}</div>' if inner else ""


def image(path: Path, alternative: str) -> str:
    """A PNG file, embedded in the page."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{encoded}">'


def paragraph(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def folded(summary: str, text: str) -> str:
    """Text that is shown on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
