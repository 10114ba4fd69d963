"""Writers of small data files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file of bytes, compressed where the path ends in ``.gz``."""
    path.write_bytes(gzip.compress(encode(array)) if path.suffix == ".gz" else encode(array))


def encode(array: np.ndarray, type_code: int = 8) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, type_code, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_set(folder: Path, sizes=(5, 3), dot: str = "-", gz: bool = False, first: int = 0) -> Path:
    """Four files of 2 x 3 images whose pixels count up from `first`; labels are 0, 1, 2, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, size in zip(("train", "t10k"), sizes, strict=True):
        images = (first + np.arange(size * 6)).reshape(size, 2, 3)
        for kind, axes, array in (("images", "idx3", images), ("labels", "idx1", np.arange(size))):
            write_idx(folder / f"{part}-{kind}{dot}{axes}-ubyte{'.gz' if gz else ''}", array)
    return folder
