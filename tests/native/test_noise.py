"""Random numbers in C++: words and uniforms bit for bit, normals to a few units in the last place."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng
from ddvi_fast.native import noise
from ddvi_fast.rng import Draws

# The seed uses all 64 bits, the rows cross the boundary between the counter's words.
DRAWS = Draws((1 << 63) + 12345, (1 << 33) - 3)


@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (7, 3), (2, 5, 4), (33, 64)])
@pytest.mark.parametrize("kind", ["words", "uniform"])
def test_bits_equal_the_specification(isa, kind, shape):
    got = noise.fill(kind, DRAWS.state(), 5, shape, rng.START, planes=2)
    assert torch.equal(got, rng.formula(kind, DRAWS.advance(5), shape, rng.START, planes=2))


def test_normals_to_a_few_units_in_the_last_place(isa):
    got, expected = noise.fill("normal", DRAWS.state(), 0, (20_000, 5), 3), rng.formula("normal", DRAWS, (20_000, 5), 3)
    unit = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
    assert ((got.double() - expected.double()).abs() / unit).max() <= 4
