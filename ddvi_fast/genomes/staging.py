"""Genotypes on their way from a file to a store: packed variant by variant, as files have them, on disk, and read back in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ddvi_fast import _checks
from ddvi_fast.data.packed import code_counts
from ddvi_fast.data.packing import MISSING, pack, packed_width, unpack
from ddvi_fast.genomes.formats.sources import Source, block_rows
from ddvi_fast.genomes.tables import SampleTable, VariantTable


class Staged:
    """Genotypes of one file, one row a variant, 2-bit packed.

    Args:
        path: a new file for the packed rows; the caller removes it.
        source: what to read, to its end.

    Raises:
        InputError: the reader's, and a file without variants.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.samples: SampleTable = source.samples
        parts = []
        with path.open("wb") as file:
            for block in source.blocks:
                file.write(pack(block.codes).tobytes())
                parts.append(block.variants)
        hint = "; ".join(f"{count} {reason}" for reason, count in source.notes.items() if count)
        _checks.require(bool(parts), str(source.path), "at least one variant", "none", f"left out: {hint}" if hint else "")
        self.variants = VariantTable.join(parts)
        self._packed = np.memmap(path, np.uint8, "c", shape=(len(self.variants), packed_width(len(self.samples))))

    def codes(self, variants: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """Codes uint8 [variants, samples] of the variants and samples of these indices (None: all samples)."""
        codes = unpack(torch.from_numpy(np.ascontiguousarray(self._packed[variants])), len(self.samples)).numpy()
        return codes if samples is None else codes[:, samples]

    def blocks(self, variants: np.ndarray, multiple: int = 1) -> Iterator[np.ndarray]:
        """The indices `variants` in pieces that fit in memory when unpacked; all but the last are a multiple of `multiple` long."""
        step = -(-block_rows(len(self.samples)) // multiple) * multiple
        for start in range(0, len(variants), step):
            yield variants[start : start + step]

    def counts(self, variants: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """How many of the samples have code 0, 1, 2 and 3: int32 [variants, 4]."""
        everybody = len(samples) == len(self.samples)
        parts = [code_counts(self.codes(block, None if everybody else samples)) for block in self.blocks(variants)]
        return np.concatenate(parts) if parts else np.zeros((0, 4), np.int32)

    def missing_of_samples(self, variants: np.ndarray) -> np.ndarray:
        """Missing calls of each sample among `variants`, int64 [N]."""
        total = np.zeros(len(self.samples), np.int64)
        for block in self.blocks(variants):
            total += (self.codes(block) == MISSING).sum(0)
        return total
