"""Reader of NumPy archives (.npz), whose pickled objects are never run."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddvi_fast import _checks


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read the arrays `names` of an archive.

    Raises:
        InputError: An array is missing; the file is no archive, is damaged, or has pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except KeyError as error:
        _checks.fail(str(path), f"the arrays {', '.join(names)}", str(error.args[0]))
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        _checks.fail(str(path), "a NumPy archive (.npz) without pickled objects", str(error).splitlines()[0] if str(error) else type(error).__name__)
