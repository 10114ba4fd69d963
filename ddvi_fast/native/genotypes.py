"""2-bit packed genotypes to bytes and floats in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast.native import loader


def unpack_codes(packed: Tensor, count: int) -> Tensor:
    """Codes 0 to 3 of packed rows uint8 [R, bytes], contiguous: the first `count` of each, uint8 [R, count]."""
    codes = torch.empty((len(packed), count), dtype=torch.uint8)
    sizes = loader.integers(len(packed), packed.shape[1], count, torch.get_num_threads())
    loader.library().ddvi_unpack_codes(*loader.pointers(packed), *sizes, *loader.pointers(codes))
    return codes


def unpack_scaled(packed: Tensor, centre: Tensor, scale: Tensor, missing: Tensor, out: Tensor | None = None) -> Tensor:
    """``(code - centre) * scale``, and `missing` where the code is 3: float32 [R, count] of packed rows uint8 [R, bytes].

    `centre`, `scale` and `missing` are float32 [count]; all tensors are contiguous. `out` is written to, where it is given.
    """
    count = len(centre)
    out = torch.empty((len(packed), count), dtype=torch.float32) if out is None else out
    sizes = loader.integers(len(packed), packed.shape[1], count, torch.get_num_threads())
    loader.library().ddvi_unpack_scaled(*loader.pointers(packed, centre, scale, missing), *sizes, *loader.pointers(out))
    return out
