"""Tests of the number of clusters by held-out examples."""

import dataclasses

import pytest
import torch

from ddvi_fast._checks import InputError
from ddvi_fast.config.compose import compose
from ddvi_fast.training import cluster_choice
from ddvi_fast.training.cluster_choice import with_chosen_clusters
from ddvi_fast.training.run import load_dataset

SETTINGS = (
    "dataset=digits", "method=vae_clustering", "limit=60", "recipe.min_steps=20", "recipe.epochs=2", "dataset.encoder.hidden=[8]",
    "dataset.decoder.hidden=[8]", "progress=off",
)  # fmt: skip


def chosen(monkeypatch, bounds, numbers):
    """The choice among numbers whose held-out bounds are those of `bounds`, by number."""
    config = compose([*SETTINGS, f"method.clustering.compare={numbers}"])
    monkeypatch.setattr(cluster_choice, "_bounds", lambda config, dataset: bounds[config.method.clustering.num_clusters])
    found = with_chosen_clusters(config, load_dataset)
    assert dataclasses.replace(found.method.clustering, num_clusters=20) == config.method.clustering
    return found.method.clustering.num_clusters


def test_the_smallest_number_within_a_standard_error_is_chosen(monkeypatch):
    size = len(load_dataset(compose([*SETTINGS, "dataset.validation=0.2"])).inputs(split="test"))
    noise = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / noise.std()  # of standard error 1 / sqrt(size)
    error, common = size**-0.5, 100 * torch.arange(size, dtype=torch.float64)  # which differences take away
    for behind, expected in ((0.9, 4), (1.1, 6)):
        bounds = {2: common - 50, 4: common - behind * error - noise, 6: common, 8: common - 0.01}
        assert chosen(monkeypatch, bounds, [8, 2, 6, 4]) == expected


def test_numbers_are_trained_without_the_held_out_examples(monkeypatch):
    shares = []
    bounds = cluster_choice._bounds
    monkeypatch.setattr(cluster_choice, "_bounds", lambda config, dataset: shares.append(dataset.validation) or bounds(config, dataset))
    config = compose([*SETTINGS, "method.clustering.compare=[2, 3]"])
    assert with_chosen_clusters(config, load_dataset).method.clustering.num_clusters in (2, 3)
    assert shares == [0.2, 0.2]


def test_without_numbers_nothing_changes_and_bad_numbers_are_refused():
    config = compose(SETTINGS)
    assert with_chosen_clusters(config, None) is config
    with pytest.raises(InputError, match=r"method.clustering.compare\[0\]: expected an integer of at least 1"):
        with_chosen_clusters(compose([*SETTINGS, "method.clustering.compare=[0]"]), load_dataset)
