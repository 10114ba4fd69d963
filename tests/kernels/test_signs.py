"""Layout of ReLU signs: the formula, host functions and device functions agree."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from ddvi_fast.kernels import signs
from tests.operands import TRITON_DEVICE


@triton.jit
def _round_trip(x, words, active, ROWS: tl.constexpr, B: tl.constexpr, HALVES: tl.constexpr):
    rows, units, places = tl.arange(0, ROWS)[:, None], tl.arange(0, B)[None, :], tl.arange(0, B // 32)[None, :]
    packed = signs.pack_block(tl.load(x + rows * B + units).to(tl.float16), ROWS, B, HALVES)
    tl.store(words + rows * (B // 32) + places, packed)
    tl.store(active + rows * B + units, signs.unpack_block(packed, ROWS, B).to(tl.int32))


@pytest.mark.parametrize("hidden", [64, 128])
def test_device_functions_write_and_read_the_layout(hidden):
    x = torch.randn(16, hidden, generator=torch.Generator().manual_seed(0)).relu()
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    x = x.to(TRITON_DEVICE)
    words, active = (torch.full((16, width), -7, dtype=torch.int32, device=x.device) for width in (hidden // 32, hidden))
    _round_trip[(1,)](x, words, active, ROWS=16, B=hidden, HALVES=False)
    expected = ~(x <= 0)
    assert torch.equal(active.bool(), expected)
    assert torch.equal(words, signs.pack(expected))
    assert torch.equal(signs.unpack(words), expected)


@pytest.mark.parametrize("hidden", [64, 128, 256])
def test_every_unit_has_a_bit_of_its_own(hidden):
    places, block = signs.places(hidden), min(hidden, signs.BLOCK)
    assert sorted(places.tolist()) == list(range(hidden))
    # Word w of block m is word w H / B + m of the layer.
    inside = signs.places(block).repeat(hidden // block)
    expected = inside // 32 * (hidden // block) + torch.arange(hidden) // block
    assert torch.equal(places // 32, expected) and torch.equal(places % 32, inside % 32)


def test_the_formula():
    # Unit 8 j + 2 q + e of 128 is bit 2 j + e of word q.
    expected = [32 * q + 2 * j + e for j in range(16) for q in range(4) for e in range(2)]
    assert signs.places(128).tolist() == expected
