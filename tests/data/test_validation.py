"""Tests of the validation split: which examples are held out, that test examples play no part, and runs on it."""

import numpy as np
import pytest
import torch

from ddvi_fast import InputError, data
from ddvi_fast.config.compose import compose
from ddvi_fast.data import from_arrays
from ddvi_fast.data.validation import hold_out, validation_split
from ddvi_fast.training.run import load_dataset, run

QUICK = (
    "dataset=digits", "epochs=1", "evaluation.iwae_samples=3", "evaluation.elbo_samples=3", "evaluation.prior_samples=200", "prior.resolution=20",
    "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[16]", "progress=off", "tensorboard=false",
)  # fmt: skip


def numbered(size, labels=None):
    """A data set whose example i is the number i, with 7 test examples that are negative."""
    tests = None if labels is None else [0] * 7
    return from_arrays("numbered", np.arange(size).reshape(size, 1), labels, test_inputs=-np.arange(1, 8).reshape(7, 1), test_labels=tests)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_parts_are_the_training_examples_in_their_order(fraction):
    held = hold_out(numbered(200), fraction)
    train, other = held.train_inputs.squeeze(1).tolist(), held.test_inputs.squeeze(1).tolist()
    assert sorted(train + other) == list(range(200)) and len(other) == 200 * fraction
    assert train == sorted(train) and other == sorted(other) and held.validation == fraction


def test_every_class_has_its_share_and_keeps_its_labels():
    sizes = [3, 40, 77, 501]
    labels = np.repeat(np.arange(4), sizes)[np.random.default_rng(0).permutation(sum(sizes))]
    for fraction in (0.1, 0.2, 0.37):
        held = hold_out(numbered(len(labels), labels), fraction)
        counts = torch.bincount(held.test_labels, minlength=4)
        assert int(counts.sum()) == round(fraction * len(labels))
        assert all(abs(int(count) - fraction * size) <= 1 for count, size in zip(counts, sizes, strict=True))
        for split in ("train", "test"):
            assert held.labels(split=split).tolist() == labels[held.inputs(split=split).squeeze(1).int().numpy()].tolist()


def test_the_held_out_examples_look_random():
    """As in a random order: the mean index, and the number of neighbours that are held out together."""
    held = hold_out(numbered(10_000), 0.2).test_inputs.double().squeeze(1)
    assert abs(held.mean() - 4999.5) < 4 * 10_000 / 12**0.5 / 2000**0.5
    neighbours = int((held.diff() == 1).sum())
    assert abs(neighbours - 400) < 4 * (400 * 0.8) ** 0.5


def test_the_same_examples_in_every_run():
    first, again = (load_dataset(compose([*QUICK, "dataset.validation=0.2", f"seed={seed}"])) for seed in (0, 7))
    assert torch.equal(first.train_inputs, again.train_inputs) and torch.equal(first.test_inputs, again.test_inputs)
    whole = data.load("digits")
    assert not {tuple(row) for row in whole.test_inputs.flatten(1).tolist()} & {
        tuple(row) for split in (first.train_inputs, first.test_inputs) for row in split.flatten(1).tolist()
    }


def test_without_a_fraction_nothing_changes_and_a_limit_comes_after_the_split():
    whole, limited = data.load("digits"), data.load("digits", limit=100, validation=0.2)
    assert torch.equal(data.load("digits", validation=0.0).test_inputs, whole.test_inputs) and whole.validation == 0
    assert (limited.size(), limited.size("test")) == (100, 100)
    assert torch.equal(limited.train_inputs, data.load("digits", validation=0.2).train_inputs[:100])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_images_of_files(name, shared_data):
    try:
        whole = data.load(name, shared_data(""))
    except InputError as error:
        pytest.skip(str(error))
    held = data.load(name, shared_data(""), validation=0.1)
    assert held.size() + held.size("test") == whole.size() and held.size("test") == round(0.1 * whole.size())
    shares = torch.bincount(held.test_labels, minlength=10) - 0.1 * torch.bincount(whole.train_labels, minlength=10)
    assert shares.abs().max() <= 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan"), 1e-6])
def test_fractions_that_are_none(fraction, one_line):
    one_line(lambda: data.load("digits", validation=fraction), "^dataset.validation: expected a fraction")


def test_one_example_cannot_be_split(one_line):
    one_line(lambda: validation_split(1, None, 0.5), "at least one of 1 examples")


def test_test_examples_play_no_part_in_a_run(tmp_path, monkeypatch):
    """The same metrics, whatever the test set holds."""
    digits = data.load("digits")
    found = []
    for number, test in enumerate((digits.test_inputs, 16 - digits.test_inputs[:50].flip(1))):
        changed = from_arrays(
            "digits", digits.train_inputs, digits.train_labels, test_inputs=test, test_labels=digits.test_labels[: len(test)], num_classes=10,
            scale=1 / 16, value_range=(0.0, 1.0),
        )  # fmt: skip
        monkeypatch.setitem(data.DATASETS, "digits", lambda name, changed=changed, **_: changed)
        config = compose([*QUICK, "method=vae_semi", "dataset.labels=100", "dataset.validation=0.2", "figures=false", f"run_dir={tmp_path}/{number}"])
        found.append({name: value for name, value in run(config).metrics.items() if "seconds" not in name})
    assert found[0] == found[1] and {"elbo", "class_accuracy", "knn_accuracy", "mmd"} <= found[0].keys()


def test_labels_are_chosen_among_what_is_trained_on(one_line, tmp_path):
    """1,120 of the 1,400 digits remain, so that 1,200 labels are too many."""
    overrides = [*QUICK, "method=vae_semi", "dataset.labels=1200", "figures=false", f"run_dir={tmp_path}/run"]
    one_line(lambda: run(compose([*overrides, "dataset.validation=0.2"])), "labels: expected at most 1120")
