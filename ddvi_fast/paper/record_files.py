"""Files of a table: its record, and texts that show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddvi_fast import _files, _json


def write(path: Path, record: dict[str, Any], **texts: str) -> list[Path]:
    """Write a record and texts beside it, and make their folder.

    Args:
        path: File of the record, ``NAME.json``.
        record: The record, of plain values.
        texts: Contents of the files with the same name by their endings, such as ``md``.

    Returns:
        The written files, that of the record first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {path: _json.lines(record) + "\n", **{path.with_suffix(f".{ending}"): text for ending, text in texts.items()}}
    for file, text in contents.items():
        _files.write_text(file, text)
    return list(contents)
