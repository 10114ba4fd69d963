"""Tests of data sets of genotypes: packed batches, and components of held-out samples."""

import numpy as np
import pytest
import torch

from ddvi_fast import data, likelihoods, rng
from ddvi_fast.data.dataset import random_split
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.genomes.dataset import Genotypes, components_dataset, genotypes_dataset, load_genotypes, sample_tables
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.networks import MLP
from tests.genomes import files


@pytest.fixture
def store(tmp_path):
    codes = np.random.default_rng(0).choice([0, 1, 2, 3], (50, 37), p=[0.4, 0.3, 0.25, 0.05])
    return store_from_codes(codes, tmp_path / "store", labels={"side": ["left", "right"] * 25})


def test_minibatches_are_the_genotypes_and_nothing_where_calls_are_missing(store):
    packed = genotypes_dataset(store, "side", test_size=10, seed=3)
    train, test = random_split(50, 10, 3)
    assert packed.input_shape == (37,) and packed.num_dimensions == 37 and packed.size() == 40 and packed.class_names == ("left", "right")
    indices = torch.tensor([5, 0, 39, 5])
    codes = torch.from_numpy(store.genotypes())
    counts = torch.where(codes == 3, torch.nan, codes.float())
    assert torch.equal(packed.labels(indices), store.labels("side")[0][train][indices])
    for split, rows in (("train", train[indices]), ("test", test[indices[:2]])):
        torch.testing.assert_close(packed.inputs(indices[: len(rows)], split), counts[rows], rtol=0, atol=0, equal_nan=True)
    assert packed.inputs().shape == (40, 37)
    torch.testing.assert_close(packed.scaling.mean, counts[train].nanmean(0))


def test_everybody_may_train_and_be_tested(store):
    packed = genotypes_dataset(store, "side", test_size=0)
    assert packed.size() == packed.size("test") == 50 and torch.equal(packed.train_inputs, torch.from_numpy(np.array(store.packed)))
    components, _ = components_dataset(store, "side", n_components=3, test_size=0)
    assert torch.equal(components.inputs(), components.inputs(split="test")) and components.size() == 50


def test_missing_calls_have_no_part_in_the_binomial_likelihood(store):
    packed = genotypes_dataset(store, test_size=10)
    counts, output = packed.inputs(), rng.normal(rng.Draws(0), (40, 37), rng.START).requires_grad_()
    exact = torch.distributions.Binomial(2, logits=output).log_prob(counts.nan_to_num(0.0)) * ~counts.isnan()
    likelihood = likelihoods.make("binomial", total=2)
    got = likelihood.log_prob(output, counts)
    torch.testing.assert_close(got, exact.sum(-1), rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(got.sum(), output), torch.autograd.grad(exact.sum(), output), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(likelihood.pairwise(output[:3], counts), likelihood.log_prob(output[:3].unsqueeze(1), counts), rtol=1e-5, atol=1e-4)


def test_an_encoder_sees_standardised_genotypes_and_the_mean_for_missing_calls(store):
    packed = genotypes_dataset(store, test_size=10)
    counts, scaling = packed.inputs(), packed.scaling
    network = MLP(37, [8], 2)
    filled = torch.where(counts.isnan(), scaling.mean, counts)
    expected = network((filled - scaling.mean) * scaling.scale / 37**0.5)
    torch.testing.assert_close(packed.wrap_encoder(network)(counts), expected)
    decoder = MLP(2, [8], 37)
    packed.initialize_decoder(decoder)
    torch.testing.assert_close(2 * torch.sigmoid(decoder(torch.zeros(1, 2)))[0], scaling.mean, rtol=0.5, atol=0.1)


def test_taking_a_few_and_moving_keep_the_variants(store):
    few = genotypes_dataset(store, "side").take(4).to("cpu")
    assert few.size() == 4 and few.inputs().shape == (4, 37) and torch.equal(few.train_inputs, genotypes_dataset(store, "side").train_inputs[:4])
    moved = genotypes_dataset(store).to("meta")
    assert moved.scaling.mean.device.type == "meta"


def test_components_of_held_out_samples_are_projections(store):
    found, pca = components_dataset(store, "side", n_components=3, test_size=10, seed=3)
    test = random_split(50, 10, 3)[1].numpy()
    assert found.num_classes == 2 and found.size("test") == 10
    assert float(found.inputs()[:, 0].std(correction=0)) == pytest.approx(1.0, rel=1e-5)
    ratio = pca.transform(store, rows=test, unshrunk=True) / found.inputs(split="test").numpy()
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


def test_the_1000_genomes_load_by_name(tmp_path, monkeypatch, shared_data, one_line):
    pytest.importorskip("bed_reader")
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path))
    people = data.load("1kg", shared_data("1kg/1kg_phase3.bed").parent.parent)
    assert people.num_classes == 26 and people.size() + people.size("test") == 2504 and people.input_shape == (20,)
    one_line(lambda: data.load("1kg", tmp_path), r"1kg_phase3\.bed")


def test_a_store_and_a_table_of_labels_beside_it(store, tmp_path):
    table = tmp_path / "people.tsv"
    rows = [f"sample{number}\t{'north' if number < 20 else 'south'}" for number in range(50)]
    table.write_text("\n".join(["sample\tregion", *reversed(rows)]) + "\n")
    options = Genotypes(str(store.path), str(table), "counts", label="region", held_out=0)
    loaded = load_genotypes("genomes", options)
    assert loaded.class_names == ("north", "south") and loaded.labels().tolist() == [0] * 20 + [1] * 30
    assert store.samples.labels.keys() == {"side"}, "the store stays as it is"
    unlabelled = load_genotypes("genomes", Genotypes(str(store.path), num_components=3, label=None))
    assert unlabelled.train_labels is None and unlabelled.input_shape == (3,)


@pytest.mark.parametrize("features", ["counts", "components"])
def test_a_cohort_without_labels_loads_and_is_told(tmp_path, one_line, features):
    bare = store_from_codes(np.random.default_rng(0).choice(3, (50, 37)), tmp_path / "bare")
    with pytest.warns(UserWarning, match="labels=TABLE"):
        loaded = load_genotypes("genomes", Genotypes(str(bare.path), num_components=3, features=features))
    assert loaded.train_labels is None and loaded.num_classes == 0
    text = one_line(lambda: load_genotypes("genomes", Genotypes(str(bare.path), num_components=3, features=features, label="region")))
    assert "dataset.genotypes.label" in text
    assert "of which this store has none" in one_line(lambda: bare.labels("population"))


def test_a_column_that_a_store_does_not_have_is_named_with_its_setting(store, one_line):
    text = one_line(lambda: load_genotypes("genomes", Genotypes(str(store.path), num_components=3)))
    assert "dataset.genotypes.label" in text and "side" in text


def test_a_file_is_read_once(tmp_path, monkeypatch):
    pytest.importorskip("bed_reader")
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path / "cache"))
    path = files.write_plink(files.simulated(30, 60), tmp_path / "cohort")
    options = Genotypes(str(path), features="counts", label=None, min_frequency=0.0)
    first = load_genotypes("genomes", options)
    (made,) = (tmp_path / "cache" / "genomes").iterdir()
    assert torch.equal(first.train_inputs, load_genotypes("genomes", options).train_inputs) and [*made.parent.iterdir()] == [made]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"features": "dosages"}, "genotypes.features"),
        ({"held_out": 1.0}, "genotypes.held_out"),
        ({"path": "nowhere.bed"}, "nowhere.bed"),
        ({"labels": "people.tsv"}, "data=PATH"),
    ],
)
def test_bad_requests_are_one_line(options, words, tmp_path, monkeypatch, one_line):
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path))
    one_line(lambda: load_genotypes("genomes", Genotypes(**options)), words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_people_held_out_for_validation_are_projected_and_the_test_people_left_out(store, held_out):
    options = {"path": str(store.path), "label": "side", "num_components": 3, "held_out": held_out}
    packed, components = (data.load("genomes", genotypes={**options, "features": kind}, validation=0.2) for kind in ("counts", "components"))
    size = 50 if held_out == 0 else 40
    assert (packed.size(), packed.size("test")) == (components.size(), components.size("test")) == (round(0.8 * size), round(0.2 * size))
    assert torch.equal(packed.test_labels, components.test_labels) and torch.equal(packed.train_labels, components.train_labels)
    torch.testing.assert_close(packed.scaling.mean, packed.inputs().nanmean(0))
    rows = {tuple(row) for split in (packed.train_inputs, packed.test_inputs) for row in split.tolist()}
    train = genotypes_dataset(store, "side", test_size=held_out)
    assert rows == {tuple(row) for row in train.train_inputs.tolist()}
    tables = sample_tables("genomes", Genotypes(**options, validation=0.2))
    places = {name: row for row, name in enumerate(store.samples.name)}
    for table, inputs in zip(tables, (packed.train_inputs, packed.test_inputs), strict=True):
        assert torch.equal(torch.from_numpy(np.array(store.packed))[[places[name] for name in table.name]], inputs)
    # The components are those of the people who are trained on.
    kept = [places[name] for name in tables[0].name]
    pca = GenotypePCA(3, drop_constant=True, seed=0)
    pca.fit(store, rows=np.array(kept))
    scores = pca.transform(store, rows=np.array(kept))
    np.testing.assert_allclose(components.inputs().numpy(), scores / scores[:, 0].std(), rtol=1e-5, atol=1e-6)
