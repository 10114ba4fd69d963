"""Tests of metrics against small cases computed by hand."""

import math
from unittest.mock import Mock

import pytest
import sklearn.metrics
import sklearn.neighbors  # noqa: F401
import torch
from scipy.stats import entropy

from ddvi_fast import metrics, ops
from ddvi_fast._checks import InputError
from ddvi_fast.rng import Draws
from tests.linear_gaussian import diffusion_posterior, exact_evidence, gaussian_posterior, make_model, observations

POSTERIORS = pytest.mark.parametrize("make_posterior", [gaussian_posterior, diffusion_posterior])


def test_partitions_by_hand():
    labels, clusters = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]
    assert metrics.purity(labels, clusters) == pytest.approx(4 / 6)  # 2 of cluster 0, and 2 of cluster 1
    entropy_labels, entropy_clusters = entropy([1 / 2, 1 / 3, 1 / 6]), entropy([1 / 3, 2 / 3])
    conditional = entropy([2 / 3, 1 / 3]) / 2  # H(clusters | labels): only label 0 is split
    assert metrics.completeness(labels, clusters) == pytest.approx(1 - conditional / entropy_clusters)
    assert metrics.nmi(labels, clusters) == pytest.approx((entropy_clusters - conditional) / (0.5 * (entropy_labels + entropy_clusters)))


def test_purity_counts_labels_within_clusters_and_not_the_reverse():
    assert metrics.purity([0, 0, 1, 1], [0, 1, 2, 3]) == 1
    assert metrics.purity([0, 1, 2, 3], [0, 0, 1, 1]) == 0.5
    assert metrics.completeness([0, 0, 1, 1], [0, 1, 2, 3]) == pytest.approx(0.5)
    assert metrics.completeness([0, 1, 2, 3], [0, 0, 1, 1]) == pytest.approx(1)


def test_partitions_take_tensors():
    assert metrics.purity(torch.tensor([0, 1]), torch.tensor([1, 0])) == 1


def test_knn_accuracy_by_hand():
    train, labels = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]), torch.tensor([0, 0, 0, 1, 1, 1])
    accuracy = metrics.knn_accuracy(train, labels, torch.tensor([[0.3], [4.0], [2.0], [9.0]]), torch.tensor([0, 1, 1, 1]), neighbours=3)
    assert accuracy == 0.75


def test_knn_accuracy_needs_enough_neighbours():
    with pytest.raises(InputError, match=r"^train_latents: expected at least 20 rows"):
        metrics.knn_accuracy(torch.zeros(19, 2), torch.zeros(19), torch.zeros(1, 2), torch.zeros(1))


def test_latent_nll_is_of_prior_samples_under_the_latents():
    latents, samples, widths = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), (0.5, 1.0)
    density = sum(math.exp(-0.25 / h**2) / (2 * math.pi * h**2) for h in widths) / 2  # both latents are at squared distance 1/2
    assert metrics.latent_nll(latents, samples, widths) == pytest.approx(-math.log(density), rel=1e-5)
    assert metrics.latent_nll(torch.zeros(3, 2), torch.eye(2), (1.0,)) == pytest.approx(0.5 + math.log(2 * math.pi), rel=1e-5)


def test_mmd_flattens_images():
    x, y = torch.linspace(0, 1, 24).view(4, 2, 3), torch.linspace(1, 0, 18).view(3, 6)
    expected = ops.mmd(x.flatten(1), y, metrics.MMD_SIGMAS)
    assert metrics.mmd(x, y) == pytest.approx(float(expected))


@POSTERIORS
def test_elbo_is_the_mean_of_log_weights(make_posterior):
    model, posterior, x, draws = make_model(), make_posterior(), observations(6), Draws(4, 50)
    weights = posterior.log_weights(model, x, 30, draws).detach()
    torch.testing.assert_close(metrics.elbo(model, posterior, x, 30, draws), weights.mean(0))
    torch.testing.assert_close(metrics.iwae_bound(model, posterior, x, 30, draws), torch.logsumexp(weights, 0) - math.log(30))


@POSTERIORS
def test_chunks_draw_the_samples_of_one_call(make_posterior, monkeypatch):
    model, posterior, x = make_model(), make_posterior(), observations(6)
    bounds = {metric: metric(model, posterior, x, 25) for metric in (metrics.elbo, metrics.iwae_bound)}
    monkeypatch.setattr(metrics, "_ROWS", 6 * 4)  # 25 samples: six chunks of 4 and one of 1
    for metric, whole in bounds.items():
        torch.testing.assert_close(metric(model, posterior, x, 25), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", [metrics.elbo, metrics.iwae_bound])
def test_memory_does_not_grow_with_samples(metric, monkeypatch):
    posterior = gaussian_posterior()
    monkeypatch.setattr(metrics, "_ROWS", 40)
    monkeypatch.setattr(posterior, "draw", draw := Mock(wraps=posterior.draw))
    metric(make_model(), posterior, observations(8), 203)
    asked = [call.args[1] for call in draw.mock_calls]
    assert sum(asked) == 203 and max(asked) * 8 <= 40


def test_iwae_rises_towards_the_evidence():
    model, posterior, x = make_model(), gaussian_posterior(), observations(200)
    # Each K gets samples of its own, and all the rows together keep the error of a mean far below the steps between them.
    bounds = [metrics.iwae_bound(model, posterior, x, k, Draws(k)).mean().item() for k in (1, 5, 50, 2000)]
    evidence = exact_evidence(x).mean().item()
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(evidence, abs=0.05)
    assert evidence - bounds[0] > 0.5


def test_elbo_released_scale():
    model, x, draws = make_model(), observations(5), Draws(2)
    for posterior, scale in ((diffusion_posterior(), 2), (gaussian_posterior(), 1)):
        z, log_ratio, _ = posterior.sample(x, 1, draws)
        expected = model.log_likelihood(x, z)[0] / 3 + model.prior.log_prob_kde(z[0]) + log_ratio[0] / scale
        torch.testing.assert_close(metrics.elbo_released(model, posterior, x, draws), expected.detach())
    twice = metrics.elbo_released(model, posterior, x, draws, log_var_twice=True)
    torch.testing.assert_close(twice - expected.detach(), 0.5 * posterior.encode(x)[1].sum(1).detach())


def test_encode_gives_rows_their_samples_in_any_split(monkeypatch):
    posterior, x = diffusion_posterior(), observations(11)
    whole = metrics.encode(posterior, x, Draws(3))
    monkeypatch.setattr(metrics, "_ROWS", 4)
    torch.testing.assert_close(metrics.encode(posterior, x, Draws(3)), whole)


@pytest.mark.parametrize("metric", [metrics.elbo, metrics.iwae_bound])
def test_bounds_refuse_what_has_none(metric, one_line):
    model, x = make_model(), observations(2)
    one_line(lambda: metric(model, diffusion_posterior(eta=0.0), x), r"^posterior: expected one with a density[^\n]*eta = 0[^\n]*$")
    one_line(lambda: metric(model, gaussian_posterior(), x[:0]), r"^x: expected at least one example")
    one_line(lambda: metric(model, gaussian_posterior(), x, 0), r"^num_samples: expected an integer of at least 1, got 0")
