"""Conversion of 2-bit packed genotypes to bytes and floats in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast.native import loader


def unpack_codes(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes (0 to 3) of each packed row, uint8 [R, count], from contiguous uint8 [R, bytes]."""
    codes = torch.empty((len(packed), count), dtype=torch.uint8, device="cpu")
    sizes = loader.integers(len(packed), packed.shape[1], count, torch.get_num_threads())
    loader.library().ddvi_unpack_codes(*loader.pointers(packed), *sizes, *loader.pointers(codes))
    return codes


def unpack_scaled(packed: Tensor, centre: Tensor, scale: Tensor, missing: Tensor, out: Tensor | None = None) -> Tensor:
    """Scaled genotypes ``(code - centre) * scale``, and `missing` where the code is 3.

    Args:
        packed: Packed rows, contiguous uint8 [R, bytes].
        centre: Center of each column, float32 [count].
        scale: Scale of each column, float32 [count].
        missing: Value of a missing call in each column, float32 [count].
        out: Memory for the result, float32 [R, count] (default None: new memory).

    Returns:
        The values, float32 [R, count].
    """
    count = len(centre)
    out = torch.empty((len(packed), count), dtype=torch.float32, device="cpu") if out is None else out
    sizes = loader.integers(len(packed), packed.shape[1], count, torch.get_num_threads())
    loader.library().ddvi_unpack_scaled(*loader.pointers(packed, centre, scale, missing), *sizes, *loader.pointers(out))
    return out
