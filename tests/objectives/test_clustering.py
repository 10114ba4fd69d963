"""Clustering objective: its terms, cluster assignment, and recovery of well separated groups."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, likelihoods, metrics, priors, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import ELBO, Progress, Sleep, WakeSleep, clustering
from ddvi_fast.objectives.adversarial import Adversarial as AdversarialObjective
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.objectives.clustering import Clustering, assign
from ddvi_fast.objectives.semisupervised import ClassWeights, SemiSupervised
from ddvi_fast.posteriors import Adversarial, Gaussian
from ddvi_fast.posteriors.class_conditional import ClassConditional, PerClass
from ddvi_fast.rng import Draws

COLUMNS, BLOBS = 5, 3


def blobs(rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [rows, 5] of three well separated groups, and the groups of its rows."""
    labels = torch.arange(rows) % BLOBS
    centres = 3 * rng.normal(Draws(1), (BLOBS, COLUMNS), rng.PRIOR)
    return centres[labels] + 0.3 * rng.normal(Draws(2), (rows, COLUMNS), rng.PRIOR), labels


def model_and_prior(num_centres: int = BLOBS) -> tuple[LatentVariableModel, priors.Centres]:
    prior = priors.Centres(num_centres=num_centres, scale=1.0)
    return LatentVariableModel(prior, MLP(2, [32], COLUMNS, draws=Draws(3)), likelihoods.make("gaussian", scale=1.0)), prior


def gaussian() -> Gaussian:
    return Gaussian(MLP(COLUMNS, [32], 4, draws=Draws(4)), 2)


@torch.no_grad()
def spread_out(posterior: Gaussian, x: torch.Tensor) -> Gaussian:
    """The posterior with means that start as far apart as the centres."""
    means, last = posterior.encode(x)[0], posterior.encoder.output_layer
    factor = 1.5 / means.std(0)
    last.weight[:2] *= factor.unsqueeze(1)
    last.bias[:2] = (last.bias[:2] - means.mean(0)) * factor
    last.weight[2:] *= 0.1
    last.bias[2:] = -3.0
    return posterior


def latent_cluster(prior: priors.Centres, coordinates: str = "latent") -> ClassConditional:
    encoder = PerClass(MLP(COLUMNS, [32], 4 * prior.num_classes, draws=Draws(4)), prior.num_classes)
    family = Gaussian(encoder, 2, coordinates, prior if "prior" in coordinates else None)
    return ClassConditional(MLP(COLUMNS, [32], prior.num_classes, draws=Draws(5)), family, prior)


def fit(objective: Clustering, x: torch.Tensor, steps: int = 400) -> None:
    optimiser = torch.optim.Adam(objective.parameters(), 0.01)
    for step in range(steps):
        for update in objective.updates(x, Progress(step, steps), Draws(0, step * len(x))):
            optimiser.zero_grad()
            update.terms().total().backward()
            optimiser.step()


@pytest.mark.parametrize("kind", ["nearest", "latent", "drawn"])
def test_groups_of_a_matrix_are_found_again(kind):
    x, labels = blobs()
    # Unused centres stay empty. With three centres for three groups, some initial values merge two groups.
    model, prior = model_and_prior(9 if kind == "nearest" else BLOBS)
    kl, guide = KLSchedule("constant"), PriorGuide(0.5, 0.6)
    if kind == "nearest":
        posterior = spread_out(gaussian(), x)
        objective = Clustering(ELBO(model, posterior, kl, guide=guide), prior)
    else:
        posterior = latent_cluster(prior, "prior")
        inner = WakeSleep(ELBO(model, posterior, kl, 2, guide), Sleep(0.0, 0.0))
        if kind == "latent":
            objective = Clustering(SemiSupervised(inner, None, ClassWeights(consistency=0.0, balance=20.0)), prior)
        else:
            objective = Clustering(inner, prior, balance=20.0, posterior=posterior)
    fit(objective, x)
    clusters = assign(posterior, prior, x)
    scores = metrics.cluster_scores(labels, clusters)
    assert scores["nmi"] > 0.9 and scores["purity"] > 0.9
    assert prior.crowding().max() < 0.3


def test_the_hinge_joins_the_updates_that_train_the_centres_alone():
    model, prior = model_and_prior(5)
    posterior = Adversarial(MLP(COLUMNS, [], 6), 2, 4)
    inner = AdversarialObjective(model, posterior, make_discriminator(2, hidden_dim=8))
    with torch.no_grad():
        prior.raw.mul_(0.1)
    x, _ = blobs(12)
    objective = Clustering(inner, prior, eta=2.0, weight=0.7)
    for update in objective.updates(x, Progress(0, 1), Draws(0)):
        terms = update.terms()
        assert ("crowding" in terms.values) == (update.group == "wake")
        if update.group == "wake":
            torch.testing.assert_close(terms.values["crowding"], prior.crowding(2.0))
            assert terms.weights["crowding"] == 0.7
            plain = sum(terms.weights[name] * value.mean() for name, value in terms.values.items())
            torch.testing.assert_close(terms.total(), plain)


def test_balance_is_the_divergence_of_the_mean_responsibilities_from_equal_ones():
    model, prior = model_and_prior(4)
    posterior, (x, _) = gaussian(), blobs(20)
    guide, progress, draws = PriorGuide(0.5, 0.6), Progress(1, 10), Draws(3)
    objective = Clustering(ELBO(model, posterior, guide=guide), prior, balance=0.3, posterior=posterior, guide=guide)
    (update,) = objective.updates(x, progress, draws)
    terms = update.terms()
    assert terms.weights["balance"] == 0.3
    z, variance = posterior.sample(x, 1, draws).z[0], 0.125**2 + guide.width(0.1) ** 2
    weight = torch.exp(-(z.unsqueeze(1) - prior.centres).square().sum(-1) / (2 * variance))
    share = (weight / weight.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(terms.values["balance"], (share * (4 * share).log()).sum())
    # It has a gradient to the encoder and to the centres, and none where clusters are equally large already.
    for parameter in (prior.raw, posterior.encoder.output_layer.weight):
        assert torch.autograd.grad(terms.values["balance"], parameter, retain_graph=True)[0].abs().max() > 1e-4
    assert "balance" not in next(iter(Clustering(ELBO(model, posterior), prior).updates(x, progress, draws))).terms().values


@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_drawn_clusters_are_balanced_by_their_probabilities(coordinates):
    model, prior = model_and_prior(4)
    posterior, (x, _), draws = latent_cluster(prior, coordinates), blobs(20), Draws(3)
    objective = Clustering(ELBO(model, posterior, num_samples=2), prior, balance=0.3, posterior=posterior)
    (update,) = objective.updates(x, Progress(1, 10), draws)
    terms, share = update.terms(), torch.softmax(posterior.classifier(x), 1).mean(0)
    torch.testing.assert_close(terms.values["balance"], (share * (4 * share).log()).sum())
    assert terms.weights["balance"] == 0.3
    terms.total().backward()
    # The centres learn from the bound in these coordinates too: the latents are pushed through them.
    assert all(part.grad.abs().max() > 0 for part in (prior.raw, *posterior.classifier.parameters(), *posterior.family.encoder.parameters()))
    assert torch.equal(assign(posterior, prior, x), posterior.classifier(x).argmax(1))


def test_balance_keeps_clusters_of_like_size():
    # A large group and a small one far away: without balance the two clusters are these groups.
    x = 0.3 * rng.normal(Draws(2), (240, COLUMNS), rng.PRIOR)
    x[:12] += 6.0
    smallest = []
    for balance in (0.0, 50.0):
        model, prior = model_and_prior(2)
        posterior, guide = spread_out(gaussian(), x), PriorGuide(0.5, 0.6)
        inner = ELBO(model, posterior, KLSchedule("constant"), guide=guide)
        fit(Clustering(inner, prior, balance=balance, posterior=posterior, guide=guide), x)
        smallest.append(torch.bincount(assign(posterior, prior, x), minlength=2).min())
    assert smallest[0] < 40 and smallest[1] > 90, smallest


def test_assignment_is_the_nearest_centre_to_the_sample():
    _, prior = model_and_prior(7)
    posterior, (x, _) = gaussian(), blobs(20)
    z = posterior.sample(x, 1, Draws(3)).z[0]
    expected = (z.unsqueeze(1) - prior.centres).norm(dim=-1).argmin(1)
    assert torch.equal(assign(posterior, prior, x, Draws(3)), expected)
    assert assign(posterior, prior, x[:0]).shape == (0,)


def test_several_samples_vote(monkeypatch):
    _, prior = model_and_prior(7)
    posterior, (x, _) = gaussian(), blobs(20)
    nearest = (posterior.sample(x, 9, Draws(3)).z.unsqueeze(2) - prior.centres).norm(dim=-1).argmin(2)
    assert (nearest != nearest[0]).any(), "samples differ"
    expected = torch.stack([torch.bincount(votes, minlength=7).argmax() for votes in nearest.T])
    assert torch.equal(assign(posterior, prior, x, Draws(3), 9), expected)
    monkeypatch.setattr(clustering, "_ROWS", 36)  # four rows at a time
    assert torch.equal(assign(posterior, prior, x, Draws(3), 9), expected)


def test_other_priors_are_refused():
    model, _ = model_and_prior()
    plain = priors.make("pinwheel")
    with pytest.raises(InputError, match=r"^prior: expected learned centres[^\n]*got a Pinwheel prior$"):
        Clustering(ELBO(model, gaussian()), plain)
    with pytest.raises(InputError, match=r"^posterior: expected a posterior if balance > 0"):
        Clustering(ELBO(model, gaussian()), model.prior, balance=1.0)
    with pytest.raises(InputError, match=r"^prior: expected learned centres[^\n]*Pinwheel prior \(method=ddvi_clustering builds them\)$"):
        assign(gaussian(), plain, blobs(4)[0])
