"""Tests of Philox against its published vectors and a pure-Python version; normals and uniforms against their laws."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import ddvi_fast
from ddvi_fast import rng
from ddvi_fast.rng import DeviceDraws, Draws


@pytest.fixture(autouse=True, params=["reference", "auto"])
def backend(request):
    """The numbers of the formula and those of the kernels pass the same tests."""
    with ddvi_fast.use_backend(request.param):
        yield request.param


ONES = 0xFFFFFFFF
# Counter, key, output: Random123's known-answer vectors for philox4x32-10 (zeros, ones, digits of pi).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def python_philox(counter, key):
    """Ten rounds with unbounded Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & ONES, (p0 >> 32) ^ c[3] ^ k[1], p0 & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return tuple(c)


def python_words(seed, index, width, stream):
    key = (seed & ONES, seed >> 32)
    blocks = [python_philox((index & ONES, index >> 32, block, stream), key) for block in range(-(-width // 4))]
    return [word for block in blocks for word in block][:width]


@pytest.mark.parametrize("counter, key, output", KNOWN)
def test_known_answers(counter, key, output):
    assert python_philox(counter, key) == output
    words = rng.philox(tuple(torch.tensor([word]) for word in counter), key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == output


@pytest.mark.parametrize("seed, first, stream", [(0, 0, 0), (2**64 - 1, 2**32 - 2, rng.NOISE), (12345678901234567, 5 * 2**40 + 1, rng.CHAIN + 65535)])
def test_words_uniforms_and_normals_match_pure_python(seed, first, stream):
    draws = Draws(seed, first)
    expected = [python_words(seed, first + row, 7, stream) for row in range(4)]
    assert rng.words(draws, (4, 7), stream).tolist() == expected
    uniforms = ((torch.tensor(expected).bitwise_right_shift(8).double() + 0.5) * 2.0**-24).float()
    assert torch.equal(rng.uniform(draws, (4, 7), stream), uniforms)
    first, second = uniforms[:, :6].double().view(4, 3, 2).unbind(2)
    normals = torch.view_as_real(torch.polar((-2 * first.log()).sqrt(), 2 * torch.pi * second)).view(4, 6)  # Box and Muller
    torch.testing.assert_close(rng.normal(draws, (4, 6), stream).double(), normals, rtol=5e-7, atol=1e-15)


def test_batch_split_and_call_order_do_not_matter():
    draws = Draws(3, 1000)
    whole = rng.normal(draws, (10, 3), rng.START)
    late, early = rng.normal(draws.advance(4), (6, 3), rng.START), rng.normal(draws, (4, 3), rng.START)
    assert torch.equal(whole, torch.cat((early, late)))
    assert torch.equal(whole[:, :2], rng.normal(draws, (10, 2), rng.START)), "a narrower request is a prefix"


def test_importance_chunks_and_leading_axes_do_not_matter():
    draws = Draws(3, 17)
    whole = rng.normal(draws, (6, 5, 3), rng.START)
    chunks = [rng.normal(draws.importance(first), (2, 5, 3), rng.START) for first in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(chunks))
    assert torch.equal(whole[0], rng.normal(draws, (5, 3), rng.START))
    assert torch.equal(whole.reshape(2, 3, 5, 3), rng.normal(draws, (2, 3, 5, 3), rng.START))


def test_planes_give_one_stream_a_step():
    draws = Draws(5)
    together = rng.normal(draws, (6, 3), rng.CHAIN, planes=4)
    assert torch.equal(together, torch.stack([rng.normal(draws, (6, 3), rng.CHAIN + step) for step in range(4)]))


def test_float64_gets_the_very_float32_numbers():
    draws = Draws(5)
    assert torch.equal(rng.normal(draws, (6, 3), 0, dtype=torch.float64), rng.normal(draws, (6, 3), 0).double())


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("width", [1, 3, 4, 5])
def test_awkward_sizes(rows, width):
    assert rng.normal(Draws(0), (rows, width), 0).shape == (rows, width)
    assert rng.uniform(Draws(0), (2, rows, width), 0).shape == (2, rows, width)


def test_laws():
    """Kolmogorov-Smirnov at the two-sided probability of 4 standard errors, 6e-5."""
    normals = rng.normal(Draws(11), (20_000, 5), rng.NOISE).flatten().numpy()
    uniforms = rng.uniform(Draws(12), (20_000, 5), rng.NOISE).flatten().numpy()
    assert stats.kstest(normals, "norm").pvalue > 6e-5 and stats.kstest(uniforms, "uniform").pvalue > 6e-5


def test_mean_and_variance():
    count = 200_000
    values, uniforms = rng.normal(Draws(13), (count, 6), rng.START).double(), rng.uniform(Draws(13), (count, 6), rng.TIME).double()
    assert (values.mean(0).abs() * count**0.5).max() < 4
    assert ((values.var(0) - 1).abs() * (count / 2) ** 0.5).max() < 4
    assert ((uniforms.mean(0) - 0.5).abs() * (12 * count) ** 0.5).max() < 4


def test_no_correlation_across_steps_dimensions_draws_and_seeds():
    steps = rng.normal(Draws(14), (100_000, 6), rng.CHAIN, planes=3).double()  # [3, N, 6]
    columns = torch.cat([steps.permute(0, 2, 1).reshape(18, -1), rng.normal(Draws(15), (100_000, 6), rng.CHAIN).double().T])
    count = columns.shape[1]

    # 24 x 24 entries at 4 standard errors fail by chance in 2% of seeds; this seed is fixed.
    off_diagonal, squares = 1 - torch.eye(24), (columns**2 - 1) / 2**0.5
    bound = 4 * count**0.5
    assert (columns @ columns.T * off_diagonal).abs().max() < bound
    assert (columns[:, 1:] @ columns[:, :-1].T).abs().max() < bound, "neighbouring draws"
    assert (squares @ squares.T * off_diagonal).abs().max() < bound, "Box-Muller pairs share a radius"


def test_permutation():
    order, again, other = (rng.permutation(Draws(seed), 1000) for seed in (1, 1, 2))
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, again) and not torch.equal(order, other)
    assert rng.permutation(Draws(1), 0).shape == (0,)
    # Every one of the 6 orders of 3 items about equally often: chi-square with 5 degrees of freedom.
    counts = collections.Counter(tuple(rng.permutation(Draws(seed), 3).tolist()) for seed in range(1200))
    assert stats.chisquare([*counts.values()]).pvalue > 6e-5 and len(counts) == 6


@pytest.mark.parametrize("arguments", [(-1,), (2**64,), (0.5,), (0, -1), (0, 2**63)])
def test_bad_draws(arguments, one_line):
    one_line(lambda: Draws(*arguments), r"seed|first_index")


def test_shape_needs_rows_and_width(one_line):
    one_line(lambda: rng.words(Draws(0), (3,), 0), r"shape: expected \[..., N, D\]")
    one_line(lambda: rng.words(Draws(0), (3, 2.0), 0), r"shape\[1\]: expected an integer")
    one_line(lambda: rng.words(Draws(0), (True, 2), 0), r"shape\[0\]: expected an integer")
    assert torch.equal(rng.words(Draws(0), (np.int64(3), np.int32(2)), 0), rng.words(Draws(0), (3, 2), 0))


@pytest.mark.parametrize("draws", [Draws(0), Draws(7, 3), Draws(2**64 - 1, 2**33 - 2)], ids=str)
def test_draws_on_the_device_are_the_same(draws):
    there = DeviceDraws(draws.state())
    assert there.state().tolist() == [draws.seed - (draws.seed >> 63 << 64), draws.first_index]
    for change in (lambda d: d, lambda d: d.advance(5), lambda d: d.importance(3), lambda d: d.spread(4).advance(1)):
        for make in (rng.words, rng.uniform, rng.normal):
            assert torch.equal(make(change(there), (2, 5, 3), rng.TIME), make(change(draws), (2, 5, 3), rng.TIME))
    assert torch.equal(rng.permutation(there, 9), rng.permutation(draws, 9))


def test_what_was_made_from_moved_draws_follows():
    start = DeviceDraws(Draws(1).state())
    later = start.importance(2).advance(4)
    start.move_to(Draws(2**63 + 5, 100))
    assert torch.equal(rng.words(later, (3, 5), 0), rng.words(Draws(2**63 + 5, 100).importance(2).advance(4), (3, 5), 0))


def test_spread_rows_share_no_draws():
    batches = [Draws(1, first).spread(3).indices((2 * 3,)) for first in (0, 2, 4)]
    assert torch.cat(batches).tolist() == list(range(18))


@pytest.mark.parametrize("position", [[0, 0], torch.zeros(3, dtype=torch.int64), torch.zeros(2)], ids=["list", "shape", "dtype"])
def test_bad_position(position, one_line):
    one_line(lambda: DeviceDraws(position), "position: expected")


def _equal_pairs(table, overlap):
    return {frozenset((one, other)) for one, other in itertools.combinations(table, 2) if overlap(table[one], table[other])}


def test_streams_and_lanes_do_not_collide():
    """But for the pairs that are known to be equal, and why that is harmless."""
    streams = _equal_pairs(rng.STREAMS, lambda a, b: a.first < b.first + b.count and b.first < a.first + a.count)
    lanes = _equal_pairs(rng.LANES, lambda a, b: a.distance == b.distance and (not a.streams or not b.streams or set(a.streams) & set(b.streams)))
    assert streams | lanes == set(rng.EQUAL)
    assert all(getattr(rng, name) == stream.first and stream.first + stream.count <= 1 << 32 for name, stream in rng.STREAMS.items())
    assert all(0 <= lane.distance < 1 << 63 for lane in rng.LANES.values())


def test_lanes_are_importance_samples():
    assert Draws(3, 5).lane("context") == Draws(3, 5).importance(1) == Draws(3, 5 + 2**40)
    assert Draws(0).lane("split") == Draws(0, 2**62)


@pytest.mark.parametrize("size", [1, 2, 5, 1024, 1025, 70_000])
def test_a_shuffled_range_has_each_place_once(size: int) -> None:
    twice = rng.shuffled(rng.Draws(3), 2 * size, size)
    for order in twice.split(size):
        assert torch.equal(order.sort().values, torch.arange(size))
    assert torch.equal(rng.shuffled(rng.Draws(3, size // 2), size, size), twice[size // 2 : size // 2 + size])
    assert size <= 2 or not torch.equal(twice[:size], twice[size:]) or size == 5


def test_places_of_a_large_shuffled_range_are_uniform_and_independent() -> None:
    places = torch.stack([rng.shuffled(rng.Draws(seed), 8, 2000) for seed in range(3000)])
    counts = torch.bincount(places[:, 0] // 100, minlength=20).double()
    assert float(((counts - 150) ** 2 / 150).sum()) < 19 + 4 * math.sqrt(2 * 19)
    correlations = torch.corrcoef(places.double().T).fill_diagonal_(0)
    assert float(correlations.abs().max()) * math.sqrt(3000) < 4
    orders = torch.stack([rng.shuffled(rng.Draws(seed), 3, 3) for seed in range(3000)])
    counts = torch.bincount(orders[:, 0] * 3 + orders[:, 1], minlength=9).double()
    assert float(((counts[counts > 0] - 500) ** 2 / 500).sum()) < 5 + 4 * math.sqrt(10) and int((counts > 0).sum()) == 6
