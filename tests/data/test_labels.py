"""Tests of the selection of labelled examples: number, balance, seed."""

import numpy as np
import pytest
import torch

from ddvi_fast import rng
from ddvi_fast.data.labels import COUNTS, select_labels

# Sixty thousand labels of uneven classes, as MNIST's are.
LABELS = (rng.uniform(rng.Draws(3), (60_000, 1), rng.ORDER).squeeze(1) ** 1.1 * 10).long()


@pytest.mark.parametrize("count", [*COUNTS, 11, 37, 10_003])
def test_exactly_as_many_and_as_balanced_as_can_be(count):
    kept = select_labels(LABELS, count, 10, seed=4)
    shares = torch.bincount(LABELS[kept], minlength=10)
    assert len(kept) == len(set(kept.tolist())) == count and bool((kept.diff() > 0).all())
    assert int(shares.max() - shares.min()) == (count % 10 > 0)


def test_a_function_of_the_seed():
    first, again, other = (select_labels(LABELS, 1000, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    # Two independent choices of 1,000 among 60,000 share 17 on average, 100 practically never.
    assert len(set(first.tolist()) & set(other.tolist())) < 100


def test_a_small_class_gives_all_it_has_and_the_others_make_up_for_it():
    labels = torch.tensor([0] * 3 + [1] * 50 + [2] * 50)
    kept = select_labels(labels, 43, 3)
    assert torch.equal(kept, select_labels(labels, np.int64(43), 3)) and len(select_labels(labels, np.float32(0.5), 3)) == 52
    assert torch.bincount(labels[kept]).tolist() == [3, 20, 20]
    assert len(select_labels(labels, 103, 3)) == 103


def test_the_released_count_is_eleven_thousand():
    kept = select_labels(LABELS, "released", 10)
    assert len(kept) == 11_000 and torch.equal(kept[1000:], torch.arange(50_000, 60_000)) and int(kept[999]) < 50_000
    assert torch.bincount(LABELS[kept[:1000]]).tolist() == [100] * 10


@pytest.mark.parametrize(
    ("labels", "count", "words"),
    [
        (LABELS, True, "labels: expected an integer"),
        (LABELS, 1.5, "labels: expected a whole number, or a share"),
        (LABELS[:40], 50, "labels: expected at most 40, the number of training examples, got 50"),
        (LABELS, 9, "at least 10, one for each class"),
        (LABELS, 10.0, "a whole number, or a share of all between 0 and 1"),
        (LABELS, "relesed", "did you mean released"),
        (LABELS[:1000], "released", "a number, for fewer than 50001"),
        (torch.zeros(100, dtype=torch.int64), 20, "none of class 1"),
    ],
)
def test_refusals(labels, count, words, one_line):
    one_line(lambda: select_labels(labels, count, 10), words)
