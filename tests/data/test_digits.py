"""Tests of the digits against the arrays of scikit-learn."""

import numpy as np
import torch
from sklearn import datasets

from ddvi_fast.data import load


def test_both_splits_together_are_all_the_digits_with_their_labels():
    bunch, data = datasets.load_digits(), load("digits")
    assert data.train_inputs.dtype == torch.uint8 and data.train_inputs.shape == (1400, 8, 8) and data.test_inputs.shape == (397, 8, 8)
    ours = [np.column_stack((16 * data.inputs(split=split).flatten(1), data.labels(split=split))) for split in ("train", "test")]
    assert sorted(np.concatenate(ours).tolist()) == sorted(np.column_stack((bunch.data, bunch.target)).tolist())


def test_floats_reach_both_ends_of_the_range():
    inputs = load("digits").inputs()
    assert (inputs.min().item(), inputs.max().item()) == load("digits").value_range == (0.0, 1.0)


def test_seed_moves_the_split():
    first, again, other = (load("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train_inputs, again.train_inputs) and torch.equal(first.test_labels, again.test_labels)
    assert not torch.equal(first.train_inputs, other.train_inputs)


def test_every_class_is_in_both_splits():
    data = load("digits")
    assert data.labels().bincount(minlength=10).min() > 100 and data.labels(split="test").bincount(minlength=10).min() > 20
