"""Packed minibatches are the genotypes, for any order of the samples; components of held-out samples come from the training samples alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddvi_fast import InputError, data, likelihoods
from ddvi_fast.data.dataset import random_split
from ddvi_fast.data.genotypes import components_dataset, genotypes_dataset
from ddvi_fast.genomes.convert import store_from_codes


@pytest.fixture
def store(tmp_path):
    codes = np.random.default_rng(0).choice([0, 1, 2, 3], (50, 37), p=[0.4, 0.3, 0.25, 0.05])
    return store_from_codes(codes, tmp_path / "store", labels={"side": ["left", "right"] * 25})


def test_minibatches_are_the_genotypes(store):
    packed = genotypes_dataset(store, "side", test_size=10, seed=3)
    train, test = random_split(50, 10, 3)
    assert packed.input_shape == (37,) and packed.num_dimensions == 37 and packed.size() == 40 and packed.class_names == ("left", "right")
    indices = torch.tensor([5, 0, 39, 5])
    codes = torch.from_numpy(store.genotypes())
    assert torch.equal(packed.labels(indices), store.labels("side")[0][train][indices])
    for split, rows in (("train", train[indices]), ("test", test[indices[:2]])):
        chosen = indices[: len(rows)]
        called = packed.called(chosen, split)
        assert torch.equal(called, codes[rows] != 3)
        assert torch.equal(packed.inputs(chosen, split)[called], codes[rows].float()[called])
    assert packed.inputs().shape == (40, 37)


def test_missing_calls_count_the_mean_of_the_training_calls(store):
    packed = genotypes_dataset(store, test_size=10, seed=3)
    train, test = (part.numpy() for part in random_split(50, 10, 3))
    codes = np.where(store.genotypes() == 3, np.nan, store.genotypes().astype(float))
    expected = np.broadcast_to(np.nanmean(codes[train], axis=0), codes.shape)
    missing = np.isnan(codes[test])
    assert missing.any()
    np.testing.assert_allclose(packed.inputs(split="test").numpy()[missing], expected[test][missing], rtol=1e-6)


def test_the_binomial_likelihood_takes_them(store):
    packed = genotypes_dataset(store, test_size=10)
    counts, called = packed.inputs(), packed.called()
    exact = torch.distributions.Binomial(2, logits=torch.tensor(0.3)).log_prob(counts.round())
    got = likelihoods.make("binomial", total=2).log_prob(torch.full_like(counts, 0.3).unsqueeze(-1), counts.round().unsqueeze(-1))
    torch.testing.assert_close(got[called], exact[called])


def test_taking_a_few_and_moving_keep_the_variants(store):
    few = genotypes_dataset(store, "side").take(4).to("cpu")
    assert few.size() == 4 and few.inputs().shape == (4, 37) and torch.equal(few.inputs(), genotypes_dataset(store, "side").inputs(slice(0, 4)))
    moved = genotypes_dataset(store).to("meta")
    assert moved.fill.device.type == "meta"


def test_components_of_held_out_samples_are_projections(store):
    found, pca = components_dataset(store, "side", n_components=3, test_size=10, seed=3)
    test = random_split(50, 10, 3)[1].numpy()
    assert found.num_classes == 2 and found.size("test") == 10
    assert float(found.inputs()[:, 0].std(correction=0)) == pytest.approx(1.0, rel=1e-5)
    ratio = pca.transform(store, rows=test) / found.inputs(split="test").numpy()
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    # What the held-out samples are has no bearing on the components.
    codes = store.genotypes()
    codes[test] = 2 - np.minimum(codes[test], 2)
    other = components_dataset(store_from_codes(codes, store.path.parent / "other"), n_components=3, test_size=10, seed=3)[1]
    assert np.array_equal(other.components_, pca.components_)


def test_simulated_genomes_load_by_name(tmp_path, monkeypatch):
    pytest.importorskip("msprime")
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path))
    genomes = data.load("genomes", limit=50)
    assert genomes.class_names == ("ADMIX", "AFR", "EAS", "EUR") and genomes.input_shape == (20,) and genomes.size() == 50
    assert len(list((tmp_path / "genomes").iterdir())) == 1


def test_the_1000_genomes_load_by_name(tmp_path, monkeypatch, shared_data):
    pytest.importorskip("bed_reader")
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path))
    people = data.load("1kg", shared_data("1kg/1kg_phase3.bed").parent.parent)
    assert people.num_classes == 26 and people.size() + people.size("test") == 2504 and people.input_shape == (20,)
    with pytest.raises(InputError, match=r"1kg_phase3\.bed"):
        data.load("1kg", tmp_path)
