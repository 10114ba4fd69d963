"""Tests of the order of the examples: a permutation that depends only on seed and epoch."""

import itertools
import math

import numpy as np
import pytest
import torch

from ddvi_fast import rng
from ddvi_fast.data import epoch_batches, epoch_order, num_batches


@pytest.mark.parametrize("size, batch_size", [(1, 1), (7, 3), (128, 128), (1000, 33)])
def test_an_epoch_visits_every_example_once(size, batch_size):
    batches = list(epoch_batches(size, batch_size, seed=3, epoch=2, drop_last=False))
    assert torch.cat(batches).sort().values.tolist() == list(range(size))
    assert len(batches) == num_batches(size, batch_size, drop_last=False) == math.ceil(size / batch_size)
    assert all(batch.dtype == torch.int64 and batch.dim() == 1 for batch in batches)


def test_dropping_the_last_batch_leaves_whole_ones_with_the_same_content():
    kept, all_of_them = (list(epoch_batches(10, 4, seed=0, epoch=0, drop_last=drop)) for drop in (True, False))
    assert [len(batch) for batch in kept] == [4, 4]
    assert all(torch.equal(one, other) for one, other in zip(kept, all_of_them, strict=False))


@pytest.mark.parametrize("batch_size", [50, 125])
def test_order_has_the_same_bits_whatever_was_called_before_and_whatever_the_batch_size(forked_generator, batch_size):
    expected = epoch_order(500, seed=11, epoch=6)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    list(epoch_batches(500, 20, seed=11, epoch=5))
    assert torch.equal(torch.cat(list(epoch_batches(500, batch_size, seed=11, epoch=6))), expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_orders_of_epochs_seeds_and_splits_are_unrelated():
    size = 4000
    orders = [epoch_order(size, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]]
    orders += [rng.permutation(rng.Draws(0).lane("split"), size), torch.arange(size)]
    # Two unrelated permutations agree in Poisson(1) places and have rank correlation of standard deviation 1 / sqrt(size - 1).
    assert all(int((one == other).sum()) <= 1 + 4 + 4 for one, other in itertools.combinations(orders, 2))
    correlations = torch.corrcoef(torch.stack(orders).double()) - torch.eye(len(orders))
    assert correlations.abs().max() < 4 / math.sqrt(size - 1)


def test_every_example_is_equally_likely_in_every_place():
    size, epochs = 5, 4000
    orders = torch.stack([epoch_order(size, seed=9, epoch=epoch) for epoch in range(epochs)])
    counts = torch.stack([(orders == example).sum(0) for example in range(size)]).double()
    assert (counts - epochs / size).abs().max() < 4 * math.sqrt(epochs * (1 / size) * (1 - 1 / size))


@pytest.mark.parametrize("batch_size", [0, -1, 11, 2.5, None, True])
def test_refuses_a_batch_size_that_does_not_fit(batch_size, one_line):
    expected = r"batch_size: expected an integer (of at least 1|from 1 to 10, the number of examples), got"
    one_line(lambda: epoch_batches(10, batch_size, seed=0, epoch=0), expected)


@pytest.mark.parametrize(
    "change, name", [({"epoch": -1}, "epoch"), ({"epoch": 1 << 30}, "epoch"), ({"seed": -1}, "seed"), ({"seed": 1 << 64}, "seed")]
)
def test_refuses_an_epoch_or_seed_out_of_range(change, name, one_line):
    one_line(lambda: epoch_batches(10, 5, **{"seed": 0, "epoch": 0, **change}), f"{name}: expected an integer in")


def test_numbers_of_numpy_are_numbers(one_line):
    assert num_batches(np.int64(10), np.int32(4)) == 2
    assert torch.equal(epoch_order(np.int64(10), 0, np.int16(3)), epoch_order(10, 0, 3))
    for call in (lambda: num_batches(10, 2.0), lambda: num_batches(10, True), lambda: epoch_order(10.0, 0, 0), lambda: epoch_order(10, 0, -1)):
        one_line(call, "expected an integer")
