"""Text columns and tables of variants in NumPy archives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.tables import VariantTable, require_file


@contextmanager
def loading(path: Path, what: str) -> Iterator[Mapping[str, np.ndarray]]:
    """A context with the arrays of an archive; `InputError` if the file is missing, or not `what`."""
    require_file(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except Exception as error:  # numpy and zipfile raise many classes
        _checks.fail("path", what, f"{path}: {' '.join(str(error).split())}")


def text_array(column: np.ndarray) -> np.ndarray:
    """Texts without line breaks, or numbers, as bytes."""
    return np.frombuffer("\n".join(map(str, column)).encode(), np.uint8)


def texts_of(array: np.ndarray) -> np.ndarray:
    """What `text_array` wrote, as texts."""
    return np.array(bytes(array).decode().split("\n"), object)


def variant_arrays(variants: VariantTable) -> dict[str, np.ndarray]:
    """The columns of a table by the names of their arrays."""
    return {f"variants_{name}": text_array(column) for name, column in vars(variants).items()}


def variants_of(archive: Mapping[str, np.ndarray]) -> VariantTable:
    """The table that `variant_arrays` wrote."""
    columns = {name: texts_of(archive[f"variants_{name}"]) for name in VariantTable.__dataclass_fields__}
    return VariantTable(**{**columns, "position": columns["position"].astype(np.int64)})
