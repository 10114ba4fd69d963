"""Signs of the denoiser's ReLUs: one bit for each hidden unit, which is all that a backward pass down the steps needs of the activations.

Layout: int32 [T, .., R, 4, H / 32], for each step (in the order of the trajectory, the first step of the chain first), row and ReLU; a bit
is 1 where the unit is active (its input is positive, or NaN). Unit u is bit f % 32 of word f // 32, where

    f = ((u % 8) // 2) (H / 4) + 2 (u // 8) + u % 2.

A thread that holds a row of a tensor core's sums has columns 8 j + 2 q and 8 j + 2 q + 1 for one q and all j. At H = 128 these are the bits
of word q, so that it makes and reads its word alone. Kernels take blocks of B = min(H, 128) units: word w of block m is word
w H / B + m of the layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # most units of a block


def places(hidden: int) -> Tensor:
    """Place 32 word + bit of each unit, int64 [H].

    Example:
        >>> places(128)[[0, 1, 2, 8, 127]].tolist()
        [0, 1, 32, 2, 127]
    """
    unit = torch.arange(hidden)
    return (unit % 8 // 2) * (hidden // 4) + 2 * (unit // 8) + unit % 2


def pack(active: Tensor) -> Tensor:
    """Words int32 [.., H / 32] of bools [.., H]."""
    sorted_bits = torch.empty_like(active).index_copy_(-1, places(active.shape[-1]).to(active.device), active).unflatten(-1, (-1, 32))
    return (sorted_bits.long() << torch.arange(32, device=active.device)).sum(-1).to(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """Bools [.., H] of words int32 [.., H / 32]; the inverse of `pack`."""
    bits = (packed.unsqueeze(-1) >> torch.arange(32, device=packed.device)) & 1
    return bits.flatten(-2).index_select(-1, places(32 * packed.shape[-1]).to(packed.device)).bool()


@triton.jit
def pack_block(x, ROWS: tl.constexpr, B: tl.constexpr, HALVES: tl.constexpr):
    """Words [ROWS, B / 32] of a block of activations [ROWS, B], which are 16-bit numbers and not negative.

    HALVES: the processor has a minimum of both halves of a register (sm_90), which finds two bits at once.
    """
    if HALVES:
        pairs = tl.inline_asm_elementwise(
            "{ .reg .b32 one; mov.b32 one, 0x00010001; min.u16x2 $0, $2, one; mov.b32 $1, 0; }", "=r,=r,r", [x], dtype=tl.int32, is_pure=True, pack=2
        )  # fmt: skip
        pairs, _ = tl.split(tl.reshape(pairs, (ROWS, B // 2, 2)))
    else:
        bits = tl.where(x.to(tl.int16, bitcast=True) == 0, 0, 1)
        first, second = tl.split(tl.reshape(bits, (ROWS, B // 2, 2)))
        pairs = first + (second << 16)
    # Bits 0 and 16 of a pair go to bits 2 j and 16 + 2 j of a sum of eight, whose odd half then fills the gaps of the even one.
    pairs = tl.reshape(tl.permute(tl.reshape(pairs, (ROWS, B // 8, 4)), (0, 2, 1)), (ROWS, B // 32, 2, 8))
    eight = tl.sum(pairs << (2 * tl.arange(0, 8))[None, None, None, :], axis=3)
    eight = (eight & 0x5555) | ((eight >> 15) & 0xAAAA)
    return tl.sum(eight << (16 * tl.arange(0, 2))[None, None, :], axis=2)


@triton.jit
def unpack_block(packed, ROWS: tl.constexpr, B: tl.constexpr):
    """Whether units are active, [ROWS, B], from their words [ROWS, B / 32]."""
    bits = (packed[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    bits = tl.permute(tl.reshape(bits, (ROWS, 4, B // 8, 2)), (0, 2, 1, 3))
    return tl.reshape(bits, (ROWS, B)) != 0
