"""HTML representation of objects in notebooks: a table, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path


def card(title: str, rows: Mapping[str, object], pictures: Sequence[Path] = ()) -> str:
    """A table of two columns with a title, and the PNG files of `pictures` below it; missing files are left out.

    Example:
        >>> card("Gaussian", {"latent dimensions": 2})
        '<table><caption>Gaussian</caption><tr><th>latent dimensions</th><td>2</td></tr></table>'
    """
    lines = "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{escape(title)}</caption>{lines}</table>{''.join(map(_picture, pictures))}"


def _picture(path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(path.stem)}" style="max-width: 100%"></figure>'
