"""Genotypes of a file on disk during its conversion: one packed row per variant, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ddvi_fast import _checks
from ddvi_fast.data.packed import code_counts
from ddvi_fast.data.packing import MISSING, pack, packed_width, unpack
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows
from ddvi_fast.genomes.tables import SampleTable, VariantTable

NEGATIVE = "variants at a negative position"  # as PLINK marks those to leave out


class Staged:
    """Genotypes of one file, 2-bit packed with one row per variant.

    Args:
        path: New file for the packed rows, which the caller removes.
        source: Opened file, which is read to its end.

    Raises:
        InputError: The file has no variants, or cannot be read.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.samples: SampleTable = source.samples
        parts = []
        with path.open("wb") as file:
            for block in source.blocks:
                placed = block.variants.position >= 0
                whole = block if placed.all() else Block(block.variants.take(placed), block.codes[placed])
                source.notes[NEGATIVE] += len(placed) - len(whole.variants)
                if len(whole.variants):
                    file.write(pack(whole.codes).tobytes())
                    parts.append(whole.variants)
        hint = "; ".join(f"{count} {reason}" for reason, count in source.notes.items() if count)
        _checks.require(bool(parts), str(source.path), "at least one variant", "none", f"left out: {hint}" if hint else "")
        self.variants = VariantTable.join(parts)
        self._packed = np.memmap(path, np.uint8, "c", shape=(len(self.variants), packed_width(len(self.samples))))

    def codes(self, variants: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """Codes uint8 [variants, samples] of the variants and samples with these indices (default all samples)."""
        codes = unpack(torch.from_numpy(np.ascontiguousarray(self._packed[variants])), len(self.samples)).numpy()
        return codes if samples is None else codes[:, samples]

    def blocks(self, variants: np.ndarray, multiple: int = 1) -> Iterator[np.ndarray]:
        """Split the indices `variants` into blocks that fit in memory when unpacked; all but the last have a multiple of `multiple`."""
        step = -(-block_rows(len(self.samples)) // multiple) * multiple
        for start in range(0, len(variants), step):
            yield variants[start : start + step]

    def counts(self, variants: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Number of the samples with code 0, 1, 2 and 3 at each variant: int32 [variants, 4]."""
        everybody = len(samples) == len(self.samples)
        parts = [code_counts(self.codes(block, None if everybody else samples)) for block in self.blocks(variants)]
        return np.concatenate(parts) if parts else np.zeros((0, 4), np.int32)

    def missing_of_samples(self, variants: np.ndarray) -> np.ndarray:
        """Number of missing calls of each sample among `variants`, int64 [N]."""
        total = np.zeros(len(self.samples), np.int64)
        for block in self.blocks(variants):
            total += (self.codes(block) == MISSING).sum(0)
        return total
