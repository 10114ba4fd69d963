"""Signs of the denoiser's ReLUs: one bit for each hidden unit, which is all that a backward pass down the steps needs of the activations.

Layout: int32 [T, .., R, 4, H / 32], for each step, row and ReLU; a bit is 1 where the unit is active (its input is positive, or NaN).
Units come in blocks of B = min(H, 128). Unit u of a block is bit f % 32 of the block's word f // 32, where

    f = ((u % 8) // 2) (B / 4) + 2 (u // 8) + u % 2.

A thread that holds a row of a tensor core's sums has columns 8 j + 2 q and 8 j + 2 q + 1 for one q and all j. At B = 128 these are the bits
of word q, so that it makes and reads its word alone. The words of block b follow those of block b - 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # most units of a block


def words(hidden: int) -> int:
    """Number of words for one ReLU layer of this width."""
    return hidden // 32


def places(hidden: int) -> Tensor:
    """Place 32 word + bit of each unit, int64 [H].

    Example:
        >>> places(128)[[0, 1, 2, 8, 127]].tolist()
        [0, 1, 32, 2, 127]
    """
    block, unit = min(hidden, BLOCK), torch.arange(hidden)
    u = unit % block
    return unit - u + (u % 8 // 2) * (block // 4) + 2 * (u // 8) + u % 2


def pack(active: Tensor) -> Tensor:
    """Words int32 [.., H / 32] of bools [.., H]."""
    sorted_bits = torch.empty_like(active).index_copy_(-1, places(active.shape[-1]).to(active.device), active).unflatten(-1, (-1, 32))
    return (sorted_bits.long() << torch.arange(32, device=active.device)).sum(-1).to(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """Bools [.., H] of words int32 [.., H / 32]; the inverse of `pack`."""
    bits = (packed.unsqueeze(-1) >> torch.arange(32, device=packed.device)) & 1
    return bits.flatten(-2).index_select(-1, places(32 * packed.shape[-1]).to(packed.device)).bool()


@triton.jit
def pack_block(x, ROWS: tl.constexpr, B: tl.constexpr):
    """Words [ROWS, B / 32] of a block of activations [ROWS, B]."""
    bits = tl.reshape(tl.where(x <= 0, 0, 1), (ROWS, B // 8, 4, 2))
    bits = tl.reshape(tl.permute(bits, (0, 2, 1, 3)), (ROWS, B // 32, 32))
    return tl.sum(bits << tl.arange(0, 32)[None, None, :], axis=2)


@triton.jit
def unpack_block(packed, ROWS: tl.constexpr, B: tl.constexpr):
    """Whether units are active, [ROWS, B], from their words [ROWS, B / 32]."""
    bits = (packed[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    bits = tl.permute(tl.reshape(bits, (ROWS, 4, B // 8, 2)), (0, 2, 1, 3))
    return tl.reshape(bits, (ROWS, B)) != 0
