"""2-bit genotypes: every instruction set against plain bit arithmetic, at widths around every vector length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddvi_fast.data.packing import pack
from ddvi_fast.native import genotypes

WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000)


def codes_of(rows, count):
    return np.random.default_rng(count).integers(0, 4, (rows, count), dtype=np.uint8)


@pytest.mark.parametrize("count", WIDTHS)
def test_codes_come_back(isa, count):
    codes = codes_of(5, count)
    bits = [[sum(int(code) << 2 * place for place, code in enumerate(row[start : start + 4])) for start in range(0, count, 4)] for row in codes]
    packed = torch.tensor(bits, dtype=torch.uint8)
    assert np.array_equal(pack(codes), packed.numpy())
    assert np.array_equal(genotypes.unpack_codes(packed, count).numpy(), codes)


@pytest.mark.parametrize("count", WIDTHS)
def test_scaled_values_are_those_of_float32_arithmetic(isa, count):
    codes = codes_of(5, count)
    centre, scale, missing = (torch.randn(count, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    got = genotypes.unpack_scaled(torch.from_numpy(pack(codes)), centre, scale, missing)
    expected = np.where(codes == 3, missing.numpy(), (codes.astype(np.float32) - centre.numpy()) * scale.numpy())
    assert np.array_equal(got.numpy(), expected)


def test_rows_may_be_wider_than_what_is_read_and_many(isa, threads):
    codes = codes_of(3000, 100)
    packed = torch.from_numpy(pack(codes))
    threads(2)
    assert np.array_equal(genotypes.unpack_codes(packed, 57).numpy(), codes[:, :57])
    out = torch.full((3000, 57), torch.nan)
    ones = torch.ones(57)
    assert genotypes.unpack_scaled(packed, 0 * ones, ones, 9 * ones, out) is out
    assert np.array_equal(out.numpy(), np.where(codes == 3, 9, codes)[:, :57])
    assert genotypes.unpack_codes(packed[:0], 57).shape == (0, 57)
