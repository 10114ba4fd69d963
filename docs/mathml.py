"""MkDocs hook that converts formulas to MathML, which browsers render without a script or a network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_page_content(content: str, **_: Any) -> str:
    """Convert every formula of a page to MathML."""
    return _FORMULA.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    formula = html.unescape(found[3]).strip()
    if found[2] == "(":
        return convert(formula, display="inline")
    # On a narrow screen a long formula scrolls, not the page.
    return f'<div style="overflow: auto hidden; padding: .3em 0">{convert(formula, display="block")}</div>'
