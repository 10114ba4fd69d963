"""Tests of runs on genotypes: data and labels by path, both kinds of features, embedding baselines, pictures."""

import json
import re

import numpy as np
import pytest
import torch

from ddvi_fast import data
from ddvi_fast.config.compose import compose
from ddvi_fast.genomes import maps as genome_maps
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.paper import embedding_baselines as maps
from ddvi_fast.plots.run import draw_run
from ddvi_fast.recipes.build import build
from ddvi_fast.training.evaluate import released_clusters
from ddvi_fast.training.run import load_dataset, run

QUICK = (
    "epochs=1", "recipe.batch_size=16", "dataset.encoder.hidden=[8]", "dataset.decoder.hidden=[8]", "method.clustering.num_clusters=3",
    "evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.prior_samples=50", "evaluation.limit=5", "prior.resolution=10",
    "dataset.genotypes.num_components=4", "tensorboard=false", "progress=off",
)  # fmt: skip


@pytest.fixture
def cohort(tmp_path):
    """A store of three populations in two groups, and a table of labels: its path and the table's."""
    generator = np.random.default_rng(0)
    group = np.arange(120) % 3
    frequency = np.array([[0.1] * 30 + [0.5] * 30, [0.5] * 30 + [0.1] * 30, [0.8] * 60])[group]
    codes = generator.binomial(2, frequency)
    codes[generator.random(codes.shape) < 0.02] = 3
    store_from_codes(codes, tmp_path / "cohort")
    rows = [f"sample{number}\t{'ABC'[which]}\t{'XXY'[which]}" for number, which in enumerate(group)]
    (tmp_path / "people.tsv").write_text("\n".join(["sample\tpopulation\tsuperpopulation", *rows]) + "\n")
    return f"data={tmp_path / 'cohort'}", f"labels={tmp_path / 'people.tsv'}"


@pytest.fixture
def configured(cohort):
    """``configured(*overrides)``: the configuration of a short run on the cohort; `dataset` names another selection of features."""
    return lambda *overrides, dataset="genomes": compose([f"dataset={dataset}", *cohort, *QUICK, *overrides])


@pytest.mark.parametrize("method", ["ddvi_clustering", "vae_clustering", "iaf_clustering", "aae_clustering"])
def test_every_method_takes_data_and_labels_by_path(configured, tmp_path, method):
    result = run(configured(f"method={method}", f"run_dir={tmp_path / 'run'}"), draw_run)
    assert {"nmi", "purity", "completeness", "nmi_mixture", "purity_mixture", "completeness_mixture", "knn_accuracy"} <= result.metrics.keys()
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == result.metrics
    pictures = {path.name for path in result.figures}
    assert {"populations.png", "superpopulations.png", "uncertainty.png", "map.html"} <= pictures and "decoded.png" not in pictures
    assert "sample7" in (tmp_path / "run" / "figures" / "map.html").read_text()


@pytest.mark.parametrize("method", ["ddvi_clustering", "vae_clustering"])
def test_genotypes_as_they_are_train_with_calls_missing(configured, tmp_path, method):
    config = configured(f"method={method}", f"run_dir={tmp_path / 'run'}", "figures=false", dataset="genomes_counts")
    result = run(config)
    assert np.isfinite([result.metrics[name] for name in ("elbo", "iwae", "nmi", "latent_nll")]).all() and "mmd" not in result.metrics
    dataset = load_dataset(config)
    counts, frequency = dataset.inputs(slice(0, 8)), (dataset.scaling.mean / 2).clamp(1e-3, 1 - 1e-3)
    before = build(config, dataset).model.log_likelihood(counts, torch.zeros(8, 2)).detach()
    binomial = torch.distributions.Binomial(2, probs=frequency).log_prob(counts.nan_to_num(0.0)).masked_fill(counts.isnan(), 0.0).sum(-1)
    # A decoder that knows nothing yet says little more or less than the variants' frequencies.
    assert ((before - binomial).abs() < 0.2 * binomial.abs()).all()


def test_everybody_trains_and_is_tested_as_in_the_paper(configured):
    dataset = load_dataset(configured("dataset.genotypes.held_out=0"))
    assert dataset.size() == dataset.size("test") == 120 and torch.equal(dataset.inputs(), dataset.inputs(split="test"))
    assert dataset.class_names == ("A", "B", "C")
    groups = load_dataset(configured("dataset.genotypes.label=superpopulation"))
    assert groups.class_names == ("X", "Y") and groups.size("test") == 24


def test_people_are_those_of_the_sets(configured):
    config = configured()
    dataset = load_dataset(config)
    known = genome_maps.people(config, dataset)
    assert known.names == ("A", "B", "C") and known.groups == ("X", "X", "Y") and known.sets == ("training", "test")
    for table, labels, split, size in zip(known.tables, known.labels, ("train", "test"), (96, 24), strict=True):
        assert len(table) == dataset.size(split) == size
        assert [dataset.class_names[label] for label in labels] == list(table.labels["population"])
    assert genome_maps.people(compose(["dataset=digits"]), data.load("digits")) is None
    everybody = configured("dataset.genotypes.held_out=0")
    assert genome_maps.people(everybody, load_dataset(everybody)).sets == ("training",)


def test_colors_are_the_same_in_every_picture(configured, tmp_path, monkeypatch):
    painted = []
    drawn = genome_maps.plots.latents
    monkeypatch.setattr(genome_maps.plots, "latents", lambda *given, **options: painted.append(options["class_colors"]) or drawn(*given, **options))
    run(configured("method=ddvi_clustering", f"run_dir={tmp_path / 'run'}"), draw_run)
    page = (tmp_path / "run" / "figures" / "map.html").read_text()
    held = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    assert painted == [held["colours"]] and held["set"].count("test") == 24 and len(held["cluster"]) == len(held["probability"]) == 120
    assert (tmp_path / "run" / "figures" / "components.png").is_file()


def test_people_without_labels_are_drawn_by_cluster(configured, tmp_path):
    folder = tmp_path / "run"
    result = run(configured("method=ddvi_clustering", "dataset.genotypes.label=null", f"run_dir={folder}"), draw_run)
    assert {"populations.png", "uncertainty.png", "components.png", "map.html"} <= {path.name for path in result.figures}
    page = (folder / "figures" / "map.html").read_text()
    held = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    assert [held["names"][label] for label in held["label"]] == [f"cluster {number}" for number in held["cluster"]]
    # The page is one of the run's own files.
    run(configured("method=ddvi", "prior=pinwheel", "figures=false", "overwrite=true", f"run_dir={folder}"))
    assert not (folder / "figures" / "map.html").exists()


@pytest.mark.parametrize("name", maps.MAPS)
@pytest.mark.parametrize("held_out", [0, 0.2])
def test_maps_are_made_and_scored_alike(configured, tmp_path, name, held_out, one_line):
    pytest.importorskip({"umap": "umap", "tsne": "openTSNE", "pca": "sklearn"}[name])
    settings = (f"dataset.genotypes.held_out={held_out}", "method.map.perplexity=10", f"run_dir={tmp_path / 'run'}")
    config = configured(f"method={name}", *settings)
    result = run(config)
    assert result.metrics["nmi"] > 0.8 and result.metrics["nmi_mixture"] > 0.8, "three populations far apart"
    stored = np.load(tmp_path / "run" / maps.LATENTS)
    assert stored["latents"].shape == (24 if held_out else 120, 2) and (tmp_path / "run" / "figures" / "latents.png").is_file()
    one_line(lambda: run(config), "run folder")


def test_without_open_tsne_scikit_learns_is_taken_which_places_nobody_new(configured, monkeypatch, one_line):
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
    everybody = configured("method=tsne", "method.map.perplexity=10", "dataset.genotypes.held_out=0")
    assert maps.fit(everybody, load_dataset(everybody)).test.shape == (120, 2)
    for method, words in (("tsne", "held_out=0"), ("umap", "umap-learn")):
        config = configured(f"method={method}", "method.map.perplexity=10")
        one_line(lambda config=config: maps.fit(config, load_dataset(config)), words)


def test_the_released_rule_is_a_mixture_fitted_to_training_latents():
    from sklearn.mixture import GaussianMixture

    generator = np.random.default_rng(0)
    train, test = (torch.from_numpy(generator.normal(size=(200, 2)) + 6 * (np.arange(200) % 3)[:, None]) for _ in range(2))
    config = compose(["method=ddvi_clustering", "method.clustering.num_clusters=3"])
    scores = released_clusters(config, train, test, torch.arange(200) % 3)
    assert scores["nmi_mixture"] == pytest.approx(1.0) and scores["clusters_used_mixture"] == 3
    expected = GaussianMixture(3, random_state=0).fit(train.numpy()).predict(test.numpy())
    assert len(set(zip(expected, (np.arange(200) % 3).tolist(), strict=True))) == 3
    assert all(name.endswith("mixture") for name in scores)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=digits", "data=x"], "none but for dataset=genomes"),
        (["dataset=genomes", "data=/nowhere"], "file: expected"),
        (["dataset=genomes", "labels=x"], "none without data=PATH"),
        (["dataset=genomes", "dataset.genotypes.features=x"], "genotypes.features"),
    ],
)
def test_bad_paths_are_one_line(overrides, words, one_line):
    one_line(lambda: load_dataset(compose(overrides)), words)
