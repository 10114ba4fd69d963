"""Validation split: training examples that take the place of the test set, so that settings are chosen without it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.data.dataset import Dataset

_SEED = 0  # the same examples in every run, whatever its seed


def hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """Return the data with a part of the training examples as the test set; the original test set is left out.

    The part is the same in every run. Its classes have the same proportions as those of all training examples, within one example a class.

    Args:
        dataset: Data set.
        fraction: Fraction of the training examples to hold out, in [0, 1) (float); with 0 the data are returned as they are.

    Raises:
        InputError: `fraction` is out of range, or leaves one of the two parts without examples.

    Example:
        >>> from ddvi_fast.data import load
        >>> held = hold_out(load("digits"), 0.2)
        >>> held.size("train"), held.size("test"), held.validation
        (1120, 280, 0.2)
    """
    if fraction == 0:
        return dataset
    train, held = validation_split(dataset.size(), dataset.train_labels, fraction)
    inputs, labels = dataset.train_inputs, dataset.train_labels
    train_labels, held_labels = (None, None) if labels is None else (labels[train], labels[held])
    return replace(
        dataset, train_inputs=inputs[train], train_labels=train_labels, test_inputs=inputs[held], test_labels=held_labels, validation=fraction
    )


def validation_split(size: int, labels: Tensor | None, fraction: float) -> tuple[Tensor, Tensor]:
    """Increasing indices of the examples that are trained on, and of those that are held out: ``round(fraction * size)`` of them.

    The examples are sorted by class and at random within each, and every ``size / count``-th one is held out (systematic sampling).
    """
    _checks.require(0 < fraction < 1, "dataset.validation", "a fraction of at least 0 and below 1", fraction)
    count = round(fraction * size)
    _checks.require(0 < count < size, "dataset.validation", f"a fraction that leaves both parts at least one of {size} examples", fraction)
    order = rng.permutation(rng.Draws(_SEED).lane("validation"), size)
    if labels is not None:
        order = order[labels.cpu()[order].argsort(stable=True)]
    held = torch.zeros(size, dtype=torch.bool, device="cpu")
    held[order[(torch.arange(count, device="cpu") * size + size // 2) // count]] = True
    here = order.device if labels is None else labels.device
    return (~held).nonzero().squeeze(1).to(here), held.nonzero().squeeze(1).to(here)
