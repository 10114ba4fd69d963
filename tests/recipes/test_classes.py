"""Tests of semi-supervised, M2 and clustering runs from their configuration: objects built and values reported."""

import json

import pytest
import torch

from ddvi_fast.config.compose import compose
from ddvi_fast.data.dataset import from_arrays
from ddvi_fast.objectives import Progress
from ddvi_fast.objectives.clustering import Clustering
from ddvi_fast.objectives.semisupervised import SemiSupervised
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.priors import Centres, OneHotGaussian
from ddvi_fast.recipes.build import build
from ddvi_fast.rng import Draws

SMALL = [
    "epochs=1", "limit=256", "progress=off", "tensorboard=false", "evaluation.limit=50", "dataset.encoder.hidden=[32]",
]  # fmt: skip
BOUNDS = ["evaluation.iwae_samples=5", "evaluation.elbo_samples=5"]  # of posteriors with a density
SEMI = ["ddvi_semi", "vae_semi", "iaf_semi", "aae_semi"]
CLUSTERING = ["ddvi_clustering", "vae_clustering", "iaf_clustering", "aae_clustering"]


@pytest.fixture
def run(shell, tmp_path):
    """``run(*overrides)``: metrics of a short run of narrow networks."""

    def metrics(*overrides):
        bounds = [] if any(override.startswith("method=aae") for override in overrides) else BOUNDS
        shell("train", *SMALL, *bounds, f"run_dir={tmp_path / 'run'}", *overrides)
        return json.loads((tmp_path / "run" / "evaluation.json").read_text())

    return metrics


@pytest.mark.parametrize("method", SEMI)
@pytest.mark.parametrize("prior", ["pinwheel", "swiss_roll_noisy", "square", "mixture"])
def test_every_partitioned_prior_serves_every_method(built, finite_updates, method, prior):
    (phase,) = built(f"method={method}", f"prior={prior}", "dataset.labels=20").phases
    finite_updates(phase.objective.train(), rows=16)


@pytest.mark.parametrize("method", ["ddvi_semi", "aae_semi", "m2"])
def test_a_semi_supervised_run_reports_accuracy_and_its_bound(run, method):
    result = run(f"method={method}", "dataset.labels=50", "dataset.decoder.hidden=[32]")
    assert 0 <= result["class_accuracy"] <= 1
    assert ("elbo" in result) == (method != "aae_semi")
    if method == "ddvi_semi":
        assert result["elbo"] < result["evidence"] and result["iwae"] <= result["evidence"] + 0.5
    assert ("evidence" in result) == (method != "m2")


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("method", ["ddvi_clustering", "aae_clustering"])
def test_a_clustering_run_reports_its_scores(run, method, latent):
    result = run(f"method={method}", f"method.clustering.latent={latent}")
    assert all(0 <= result[name] <= 1 for name in ("purity", "completeness", "nmi")) and 1 <= result["clusters_used"] <= 20


@pytest.mark.parametrize("method", CLUSTERING)
def test_clusters_are_balanced_where_that_has_a_weight(built, finite_updates, method):
    """The term has no weight by default. Latent clusters are balanced by q(c | x) instead, with weight 20 by default."""
    for override, weight in (("null", None), ("1.5", 1.5)):
        update, *_ = finite_updates(built(f"method={method}", f"method.clustering.balance={override}").phases[0].objective)
        assert update.terms().weights.get("balance") == weight
    if method != "iaf_clustering":
        latent = [
            built(f"method={method}", "method.clustering.latent=true", *more).phases[0].objective.inner.weights.balance
            for more in ([], ["method.clustering.balance=3"])
        ]
        assert latent == [20.0, 3.0]


@pytest.mark.parametrize("method", CLUSTERING)
def test_clusters_are_as_wide_and_far_apart_as_their_number_allows(built, method):
    for number, scale, eta in ((20, 0.06, 0.75), (5, 0.24, 1.5)):
        experiment = built(f"method={method}", f"method.clustering.num_clusters={number}")
        assert experiment.model.prior.scale == pytest.approx(scale) and experiment.phases[0].objective.eta == pytest.approx(eta)
    stated = built(f"method={method}", "method.clustering.base_scale=0.1", "method.clustering.eta=0.5")
    assert stated.model.prior.scale == 0.1 and stated.phases[0].objective.eta == 0.5


def test_what_a_configuration_stands_for(built):
    experiment = built("method=ddvi_semi")
    assert isinstance(experiment.posterior, ClassConditional) and isinstance(experiment.posterior.family, Diffusion)
    assert experiment.posterior.family.denoiser.groups is None and experiment.posterior.coordinates == "prior+encoder"
    objective = experiment.phases[0].objective
    assert isinstance(objective, SemiSupervised) and objective.labelled.counts.tolist() == [10] * 10
    assert objective.inner.pair_fit.active and objective.inner.wake.num_samples == 4
    assert experiment.posterior.prior is experiment.model.prior
    experiment = built("method=vae_clustering", "prior=pinwheel", "method.clustering.num_clusters=7")
    assert isinstance(experiment.model.prior, Centres) and experiment.model.prior.num_classes == 7
    assert isinstance(experiment.phases[0].objective, Clustering)
    assert experiment.phases[0].optimisation.factor("prior.raw") == 10.0
    assert isinstance(built("method=m2").model.prior, OneHotGaussian)


def test_class_means_start_in_their_partition(assembled):
    _, dataset, experiment = assembled("method=vae_semi", "method.coordinates=latent")
    means = experiment.posterior.family.encode(dataset.inputs()).mean
    for label in range(10):
        target = experiment.model.prior.sample(4096, labels=torch.full((4096,), label))
        torch.testing.assert_close(means[label].mean(0), target.mean(0), atol=0.02, rtol=0)
        torch.testing.assert_close(means[label].std(0), target.std(0), atol=0.02, rtol=0.2)


@pytest.mark.parametrize("method", ["vae_semi", "vae"])
def test_class_means_start_with_the_spread_of_the_priors_noise(assembled, method):
    _, dataset, experiment = assembled(f"method={method}")
    posterior = experiment.posterior
    means = posterior.family.encode(posterior.features(dataset.inputs())).mean
    assert means.shape[0] == 10
    torch.testing.assert_close(means.mean(1), torch.zeros(10, 2), atol=0.1, rtol=0)
    torch.testing.assert_close(means.std(1), torch.ones(10, 2), atol=0.1, rtol=0)


def test_the_seed_chooses_the_labels(built):
    first, again, other = (built("method=vae_semi", f"seed={seed}").phases[0].objective.labelled.x for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_any_matrix_can_be_clustered():
    generator = torch.Generator().manual_seed(0)
    dataset = from_arrays("matrix", torch.rand(60, 7, generator=generator).numpy(), test_size=10)
    config = compose(["method=ddvi_clustering", "dataset.likelihood=gaussian", "method.clustering.num_clusters=3"])
    (phase,) = build(config, dataset).phases
    (update,) = phase.objective.updates(dataset.inputs(slice(0, 8)), Progress(1, 2), Draws(0))
    assert update.terms().values["crowding"].shape == (3,)
