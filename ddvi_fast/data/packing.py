"""Packing of genotypes into 2-bit codes, four to a byte, and unpacking.

A code is the number of copies of the counted allele, 0, 1 or 2; 3 is a missing call. Code `j` of a row is in byte ``j // 4`` at bit
``2 * (j % 4)``; the unused bits of the last byte are zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _backend, _checks

MISSING = 3
PER_BYTE = 4

_SHIFTS = (0, 2, 4, 6)


def packed_width(count: int) -> int:
    """Number of bytes of `count` packed codes."""
    return -(-count // PER_BYTE)


def pack(codes: np.ndarray) -> np.ndarray:
    """Pack codes uint8 [R, C] into uint8 [R, ceil(C / 4)].

    Example:
        >>> pack(np.array([[0, 1, 2, 3, 1]], dtype=np.uint8)).tolist()
        [[228, 1]]
    """
    rows, count = codes.shape
    if count % PER_BYTE:
        codes = np.pad(codes, ((0, 0), (0, -count % PER_BYTE)))
    packed = codes[:, 0::PER_BYTE].copy()
    for place in range(1, PER_BYTE):
        packed |= codes[:, place::PER_BYTE] << _SHIFTS[place]
    return packed.reshape(rows, packed_width(count))


def unpack(packed: Tensor, count: int) -> Tensor:
    """Unpack codes, on the device of the packed rows.

    Args:
        packed: Packed rows, uint8 [R, bytes].
        count: Number of codes in a row, C.

    Returns:
        uint8 [R, C], 3 where the call is missing.

    Raises:
        InputError: `packed` is not a uint8 matrix, or too narrow for `count` codes.

    Example:
        >>> unpack(torch.tensor([[228, 1]], dtype=torch.uint8), 5).tolist()
        [[0, 1, 2, 3, 1]]
    """
    _check(packed, count)
    if _native(packed.device):
        from ddvi_fast.native import genotypes

        return genotypes.unpack_codes(packed.contiguous(), count)
    return _unpack_plain(packed, count)


def unpack_scaled(packed: Tensor, centre: Tensor, scale: Tensor, missing: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Unpack ``(code - centre) * scale``, on the device of the packed rows.

    Args:
        packed: Packed rows, uint8 [R, bytes].
        centre, scale: Constants of each column, float32 [C], on the same device.
        missing: Value for missing calls in each column, float32 [C] (default zero).
        out: Tensor for the result, contiguous float32 [R, C] (default a new one, whose allocation takes as long as the unpacking).

    Returns:
        float32 [R, C].

    Raises:
        InputError: As for `unpack`; or a tensor of another length, dtype or device.

    Example:
        >>> unpack_scaled(torch.tensor([[228]], dtype=torch.uint8), torch.ones(4), torch.full((4,), 0.5)).tolist()
        [[-0.5, 0.0, 0.5, 0.0]]
    """
    missing = torch.zeros_like(centre) if missing is None else missing
    _check(packed, len(centre))
    for name, value in (("centre", centre), ("scale", scale), ("missing", missing)):
        _checks.tensor(value, name, (len(centre),))
        _checks.require(value.dtype == torch.float32, name, "a float32 tensor", value)
        _checks.same_device(name, value, packed)
    if out is not None:
        _checks.tensor(out, "out", (len(packed), len(centre)))
        _checks.require(out.is_contiguous() and out.dtype == torch.float32, "out", "a contiguous float32 tensor", out)
    if _native(packed.device):
        from ddvi_fast.native import genotypes

        return genotypes.unpack_scaled(*(value.contiguous() for value in (packed, centre, scale, missing)), out)
    codes = _unpack_plain(packed, len(centre))
    return torch.where(codes == MISSING, missing, (codes.float() - centre) * scale, out=out)


def _native(device: torch.device) -> bool:
    return _backend.fused(device) == "cpp"


def _unpack_plain(packed: Tensor, count: int) -> Tensor:
    shifts = torch.tensor(_SHIFTS, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & MISSING).flatten(1)[:, :count].contiguous()


def _check(packed: Tensor, count: int) -> None:
    _checks.tensor(packed, "packed", (None, None), floating=False)
    _checks.require(packed.dtype == torch.uint8, "packed", "a uint8 tensor", packed)
    _checks.require(packed.shape[1] >= packed_width(count), "packed", f"rows of at least {packed_width(count)} bytes, for {count} codes", packed)
