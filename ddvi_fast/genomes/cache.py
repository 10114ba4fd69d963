"""Cache of genotype stores in the user's cache folder, one store for each key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddvi_fast._files import cache_folder
from ddvi_fast.genomes.convert import new_folder
from ddvi_fast.genomes.store import GenotypeStore, is_store


def cached_store(name: str, key: dict[str, Any], make: Callable[[Path], None], cache_dir: str | Path | None = None) -> GenotypeStore:
    """Open the store of `key` (plain values), which ``make(folder)`` writes where there is none yet.

    Two processes may make the same store at the same time; the first one that is complete is kept.
    """
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / "genomes" / f"{name}-{digest}"
    if not is_store(path):
        try:
            with new_folder(path) as made:
                make(made)
        except OSError:
            if not is_store(path):
                raise
    return GenotypeStore(path)
