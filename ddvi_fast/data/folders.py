"""Search for data files in the folder of all data sets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def folder_of(data_dir: str | Path | None) -> Path | None:
    """Folder of the data files: `data_dir`, else the environment variable ``DDVI_FAST_DATA``, else None."""
    chosen = data_dir or os.environ.get("DDVI_FAST_DATA")
    return Path(chosen).expanduser() if chosen else None


def candidates(data_dir: Path | None, *subfolders: str) -> list[Path]:
    """The sub-folders of `data_dir`, of which ``""`` is itself; none without a `data_dir`."""
    return [] if data_dir is None else [data_dir / name for name in subfolders]


def first(folders: Iterable[Path], *names: str) -> Path | None:
    """First existing file or folder of one of the names in one of the folders, or None."""
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


def searched(folders: Iterable[Path]) -> str:
    """Description of the searched folders for a message."""
    return f"none; looked in {', '.join(map(str, folders)) or 'no folder (data_dir and DDVI_FAST_DATA are not set)'}"
