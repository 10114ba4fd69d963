"""Products with the standardised genotype matrix, which is unpacked tile by tile and never held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ddvi_fast.data.packed import Scaling
from ddvi_fast.data.packing import MISSING, PER_BYTE, unpack, unpack_scaled

TILE_VALUES = 1 << 23  # floats of one unpacked tile: 32 MiB
_TILE_VARIANTS = 1024  # least number of variants of a tile, 256 bytes of each row


class StandardisedRows:
    """Standardized matrix X [N, M] of some samples, in tiles that are unpacked on demand.

    Args:
        tile: Function ``tile(rows, first, count)`` that returns packed codes of a slice of rows at `count` variants from `first` on.
        num_rows: Number of rows, N.
        scaling: Scaling of the variants.
        device: Device of the products.
    """

    def __init__(self, tile: Callable[[slice, int, int], Tensor], num_rows: int, scaling: Scaling, device: torch.device | str = "cpu") -> None:
        self._tile, self.num_rows, self.num_variants = tile, num_rows, len(scaling.mean)
        self._mean, self._scale = scaling.mean.to(device), scaling.scale.to(device)
        self.device = torch.device(device)
        # Tiles of few rows are wide; tiles of many rows are as narrow as efficient reading of parts of rows allows.
        wide = max(_TILE_VARIANTS, TILE_VALUES // max(1, num_rows))
        self._chunk = min(wide - wide % PER_BYTE, -(-self.num_variants // PER_BYTE) * PER_BYTE)
        self._rows = max(1, TILE_VALUES // self._chunk)
        self._buffer = torch.empty(min(num_rows, self._rows) * self._chunk, device=device)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """``(first, count)`` of each chunk of the variants."""
        for first in range(0, self.num_variants, self._chunk):
            yield first, min(self._chunk, self.num_variants - first)

    def row_slices(self) -> list[slice]:
        """Slices of the rows of each tile."""
        return [slice(start, min(start + self._rows, self.num_rows)) for start in range(0, self.num_rows, self._rows)]

    def values(self, rows: slice, first: int, count: int) -> Tensor:
        """A tile of X, float32 [rows, count]; the next call overwrites it."""
        packed = self._tile(rows, first, count).to(self.device)
        out = self._buffer[: len(packed) * count].view(len(packed), count)
        return unpack_scaled(packed, self._mean[first : first + count], self._scale[first : first + count], None, out)

    def called(self, rows: slice, first: int, count: int) -> Tensor:
        """Mask of a tile, float32 [rows, count]: 1 for a call, 0 for a missing one."""
        return (unpack(self._tile(rows, first, count).to(self.device), count) != MISSING).float()

    def varying(self) -> Tensor:
        """1 for each variant that varied among the fitted samples, 0 for a constant one, float32 [M]."""
        return (self._scale != 0).float()

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, variants and values of each tile of X; the next tile overwrites the values."""
        for first, count in self.chunks():
            for rows in self.row_slices():
                yield rows, slice(first, first + count), self.values(rows, first, count)

    def gram_product(self, block: Tensor) -> Tensor:
        """``X X^T block``, float64 [N, b]; tiles are multiplied in float32 and summed in float64."""
        right = block.to(self.device, torch.float32)
        total = torch.zeros(block.shape, dtype=torch.float64, device=self.device)
        slices = self.row_slices()
        for first, count in self.chunks():
            inner = torch.zeros(count, block.shape[1], device=self.device)
            for rows in slices:
                tile = self.values(rows, first, count)
                inner += tile.mT @ right[rows]
            for rows in slices:
                # A single tile of rows is still unpacked.
                tile = tile if len(slices) == 1 else self.values(rows, first, count)
                total[rows] += (tile @ inner).double()
        return total

    def transposed_product(self, block: Tensor) -> Tensor:
        """``X^T block``, float32 [M, b]."""
        right = block.to(self.device, torch.float32)
        out = torch.zeros(self.num_variants, block.shape[1], device=self.device)
        for rows, variants, tile in self.tiles():
            out[variants] += tile.mT @ right[rows]
        return out

    def product(self, block: Tensor) -> Tensor:
        """``X block``, float64 [N, b], for a block [M, b]."""
        right = block.to(self.device, torch.float32)
        total = torch.zeros(self.num_rows, block.shape[1], dtype=torch.float64, device=self.device)
        for rows, variants, tile in self.tiles():
            total[rows] += (tile @ right[variants]).double()
        return total

    def row_squares(self) -> Tensor:
        """Sum of the squares of each row, float64 [N]."""
        total = torch.zeros(self.num_rows, dtype=torch.float64, device=self.device)
        for rows, _, tile in self.tiles():
            total[rows] += tile.square().sum(1).double()
        return total


def total_square(counts: np.ndarray, scaling: Scaling) -> float:
    """Sum of the squares of all standardized values, from the counts of codes [M, 4]."""
    values = (np.arange(3) - scaling.mean.numpy().astype(np.float64)[:, None]) * scaling.scale.numpy().astype(np.float64)[:, None]
    return float((counts[:, :3] * values**2).sum())
