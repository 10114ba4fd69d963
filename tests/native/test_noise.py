"""Random numbers: words and uniforms bit for bit, normals to a few units in the last place; noising against the reference."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.native import noise
from ddvi_fast.reference import noise as reference
from ddvi_fast.rng import Draws

# The seed uses all 64 bits, the rows cross the boundary between the counter's words.
DRAWS = Draws((1 << 63) + 12345, (1 << 33) - 3)


@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (7, 3), (2, 5, 4), (33, 64)])
def test_bits_equal_the_specification(isa, shape):
    for plane in range(2):
        assert torch.equal(noise.words(DRAWS, shape, rng.START, planes=2)[plane], rng.words(DRAWS, shape, rng.START + plane))
        assert torch.equal(noise.uniform(DRAWS, shape, rng.START, planes=2)[plane], rng.uniform(DRAWS, shape, rng.START + plane))


def test_normals_to_a_few_units_in_the_last_place(isa):
    got, expected = noise.normal(DRAWS, (20_000, 5), 3)[0], rng.normal(DRAWS, (20_000, 5), 3)
    unit = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
    assert ((got.double() - expected.double()).abs() / unit).max() <= 4


@pytest.mark.parametrize("rows", [(0,), (1,), (2, 65)])
@pytest.mark.parametrize("given", [False, True])
def test_noising_matches_the_reference(isa, rows, given):
    x0, upstream = (rng.normal(Draws(seed), (*rows, 3), 0) for seed in (1, 2))
    t = rng.words(Draws(3), (*rows, 1), 0)[..., 0] % 5
    tables = [torch.linspace(0.9, 0.1, 5), torch.linspace(0.2, 1, 5)]
    handed = [rng.normal(Draws(4), (*rows, 3), 0)] if given else []

    def run(function, dtype):
        leaves = [value.to(dtype).clone().requires_grad_() for value in (x0, *tables, *handed)]
        out, used = function(leaves[0], t, leaves[1], leaves[2], leaves[3] if given else None, None if given else Draws(9))
        return out, used, *torch.autograd.grad(out, leaves, upstream.to(dtype))

    every = zip(run(noise.add_noise, torch.float32), run(reference.add_noise, torch.float32), run(reference.add_noise, torch.float64), strict=True)
    for got, plain, exact in every:
        testing.assert_within_budget(got, plain, exact)
