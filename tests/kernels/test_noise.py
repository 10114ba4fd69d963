"""Random numbers in Triton bit for bit, normals to a few units in the last place; noising against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import parity, rng, testing
from ddvi_fast.kernels import integers, noise
from ddvi_fast.rng import Draws
from tests.operands import check_triton

pytestmark = pytest.mark.usefixtures("poison_empty")

# The seed uses all 64 bits, and the rows cross the boundary between the counter's words.
DRAWS = Draws((1 << 63) + 12345, (1 << 33) - 3)


def _few_units(got, expected, units=4):
    unit = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
    return bool(((got.double() - expected.double()).abs() <= units * unit.double()).all())


@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (2, 2), (63, 3), (65, 5), (2, 5, 4), (3, 2, 7, 16), (9, 33), (2, 3, 64), (3, 131)])
def test_numbers_are_those_of_the_specification(shape):
    state = DRAWS.state()
    for kind, exact in (("words", rng.words), ("uniform", rng.uniform)):
        got = noise.fill(kind, state, 0, shape, rng.START, 2)
        for plane in range(2):
            assert torch.equal(got[plane], exact(DRAWS, shape, rng.START + plane))
    assert _few_units(noise.fill("normal", state, 0, shape, rng.START)[0], rng.normal(DRAWS, shape, rng.START))


def test_offset_is_part_of_the_draw():
    got = noise.fill("words", DRAWS.state(), (1 << 40) + 7, (5, 6), 3)[0]
    assert torch.equal(got, rng.words(DRAWS.advance((1 << 40) + 7), (5, 6), 3))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 2), (63, 5), (65, 16), (129, 3), (4, 33), (3, 64), (2, 70), (1030, 2), (515, 4), (700, 1)])
@pytest.mark.parametrize("source", ["given", "drawn"])
def test_noising_matches_the_reference(shape, source):
    check_triton(replace(parity.noise_case(shape, source), floor=1e-6))


def test_rows_of_several_samples():
    """Row r is row r % N of sample r // N, whose draws are 2^40 apart."""
    x0, t, tables = torch.zeros(12, 3), torch.zeros(12, dtype=torch.int64), (torch.ones(1), torch.ones(1))
    used = noise.add_noise(x0, t, *tables, None, DRAWS.state(), 0, 4)[1]
    assert _few_units(used.reshape(3, 4, 3), rng.normal(DRAWS, (3, 4, 3), rng.NOISE))


def test_sums_over_many_rows_and_steps():
    """Several programs, several blocks of steps, steps that no row has; and the same bits twice."""
    rows, steps = 5000, 130
    x0, used, upstream = (rng.normal(Draws(seed), (rows, 2), 0) for seed in (1, 2, 3))
    t = rng.words(Draws(3), (rows, 1), 0)[..., 0] % (steps - 3)
    tables = torch.ones(steps), torch.ones(steps)
    got, again = (noise.add_noise_backward(upstream, x0, t, *tables, used, [False, True, True, False]) for _ in range(2))
    assert got[0] is None and got[3] is None
    for i, operand in ((1, x0), (2, used)):
        plain, exact = (
            torch.zeros(steps, dtype=kind).index_add(0, t, (upstream.to(kind) * operand.to(kind)).sum(1)) for kind in (torch.float32, torch.float64)
        )
        testing.assert_within_budget(got[i], plain, exact)
        assert torch.equal(got[i], again[i]) and not got[i][-3:].any()


def test_unsupported_operands_are_named():
    x0, t = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    assert noise.unsupported(x0=x0, t=t) is None
    assert noise.unsupported(x0=x0, t=t.int()) is None and "int32" in noise.unsupported(x0=x0, t=t.short())
    assert "float32" in noise.unsupported(x0=x0.double(), t=t)


@pytest.mark.parametrize("shape, high", [((300,), 7), ((3, 50), 1), ((2, 1030), (1 << 24) - 1)])
def test_integers_are_those_of_the_specification(shape, high):
    got = integers.integers(DRAWS.state(), 0, shape, rng.TIME, high)
    assert torch.equal(got, rng.integers(DRAWS, shape, high, rng.TIME))
