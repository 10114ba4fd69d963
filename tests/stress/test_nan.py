"""NaN and infinity in priors, likelihoods, posteriors and metrics: a row of them is NaN or refused, and changes no other row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddvi_fast import InputError, likelihoods, metrics, priors
from ddvi_fast.parity import normals
from tests.linear_gaussian import make_model, observations
from tests.posteriors.families import ALL, WITH_DENSITY
from tests.stress.public import classes_of, functions_of
from tests.stress.settings import BAD, LAYOUTS, examples

PRIORS = {
    "Centres": lambda: priors.Centres(num_centres=3),
    "Gaussian": lambda: priors.Gaussian(2),
    "Mixture": lambda: priors.Mixture(num_classes=3),
    "OneHotGaussian": lambda: priors.OneHotGaussian(2, 3),
    "Pinwheel": lambda: priors.Pinwheel(3),
    "Pushforward": lambda: priors.Pushforward(lambda u: u.sinh(), 2, 2),
    "Square": lambda: priors.Square(num_classes=3),
    "SwissRoll": lambda: priors.SwissRoll(0.5, 3),
}
LIKELIHOODS = {
    "Bernoulli": likelihoods.Bernoulli,
    "Binomial": likelihoods.Binomial,
    "Gaussian": lambda: likelihoods.Gaussian(0.3, value_range=(-1, 2)),
}
PLACES = st.tuples(st.integers(0, 4), st.integers(0, 1))


def _spoilt(value, place, bad):
    value = value.clone()
    value[place[0], place[1] % value.shape[1]] = bad
    return value


def _assert_only(before, after, row, bad):
    """Results [.., N] of other rows are what they were, bit for bit; that of the row is NaN where the input is, and finite for no infinity."""
    others = [other for other in range(before.shape[-1]) if other != row]
    assert torch.equal(before[..., others], after[..., others])
    assert after[..., row].isnan().all() if math.isnan(bad) else not after[..., row].isfinite().any()


def test_every_prior_and_likelihood_is_here():
    assert set(PRIORS) == set(classes_of("priors")) - {"Prior", "PriorSample"}
    assert set(LIKELIHOODS) == set(classes_of("likelihoods")) - {"Likelihood"}


@pytest.mark.parametrize("name", PRIORS)
def test_densities_and_maps_of_priors(name):
    prior = PRIORS[name]()
    z, u, labels = prior.sample(5), normals(1, 5, prior.noise_dim), torch.zeros(5, dtype=torch.int64)

    @examples(12)
    @given(PLACES, st.sampled_from(BAD), st.sampled_from(sorted(LAYOUTS)))
    def check(place, bad, layout):
        held = LAYOUTS[layout]
        if prior.has_density:
            for classes in (None, labels) if prior.num_classes else (None,):
                before, after = prior.log_prob(z, classes), prior.log_prob(held(_spoilt(z, place, bad)), classes)
                _assert_only(before, after, place[0], bad)
            _assert_only(prior.log_prob_kde(z, 50, clamp=None), prior.log_prob_kde(held(_spoilt(z, place, bad)), 50, clamp=None), place[0], bad)
        spoilt = held(_spoilt(u, place, math.nan))
        before, after = (prior.push(value, labels if prior.num_classes else None).sum(-1) for value in (u, spoilt))
        _assert_only(before, after, place[0], math.nan)
        if prior.num_classes is not None:
            joint = normals(2, 5, prior.joint_noise_dim)
            _assert_only(prior.push(joint).sum(-1), prior.push(held(_spoilt(joint, place, math.nan))).sum(-1), place[0], math.nan)

    check()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name):
    likelihood = LIKELIHOODS[name]()
    output, x = normals(2, 5, 3), (normals(3, 5, 3) > 0).float()

    @examples(15)
    @given(PLACES, st.sampled_from(BAD), st.booleans(), st.sampled_from(sorted(LAYOUTS)))
    def check(place, bad, of_data, layout):
        if of_data and name == "Binomial":
            return  # a NaN of the data is a missing count
        first, second = (output, _spoilt(x, place, bad)) if of_data else (_spoilt(output, place, bad), x)
        after = likelihood.log_prob(LAYOUTS[layout](first), LAYOUTS[layout](second))
        others = [row for row in range(5) if row != place[0]]
        assert torch.equal(after[others], likelihood.log_prob(output, x)[others])
        assert after[place[0]].isnan() or not math.isnan(bad)

    check()


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_posteriors(make):
    model = make_model()
    posterior, x = make(model), observations(5)

    @examples(4)
    @given(PLACES, st.sampled_from(BAD), st.sampled_from(sorted(LAYOUTS)))
    def check(place, bad, layout):
        held = LAYOUTS[layout](_spoilt(x, place, bad))
        before, after = posterior.sample(x, 2).z, posterior.sample(held, 2).z
        others = [row for row in range(5) if row != place[0]]
        torch.testing.assert_close(before[:, others], after[:, others])
        assert not math.isnan(bad) or after[:, place[0]].isnan().all()
        if make in WITH_DENSITY:
            weights = posterior.log_weights(model, held, 2)
            torch.testing.assert_close(weights[:, others], posterior.log_weights(model, x, 2)[:, others])
            assert not weights[:, place[0]].isfinite().any()

    check()


def _metrics(model, posterior, x):
    z, labels = x[:, :2], torch.tensor([0, 1, 0, 1, 1])
    return {
        "elbo": lambda: metrics.elbo(model, posterior, x, 3)[0],
        "elbo_released": lambda: metrics.elbo_released(model, posterior, x)[0],
        "encode": lambda: metrics.encode(posterior, x)[0].sum(),
        "iwae_bound": lambda: metrics.iwae_bound(model, posterior, x, 3)[0],
        "knn_accuracy": lambda: metrics.knn_accuracy(z, labels, z, labels, 2),
        "latent_nll": lambda: metrics.latent_nll(z, normals(1, 5, 2)),
        "mmd": lambda: metrics.mmd(x, normals(1, 5, 3)),
    }


OF_CLASSES = {"accuracy", "cluster_scores", "completeness", "nmi", "purity"}  # metrics of classes, which are integers


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", sorted(set(functions_of("metrics")) - OF_CLASSES))
def test_metrics(name, bad):
    model = make_model()
    posterior = WITH_DENSITY[0](model)
    x = observations(5)
    clean = float(_metrics(model, posterior, x)[name]())
    assert math.isfinite(clean)
    x[0, 0] = bad
    try:
        assert not math.isfinite(float(_metrics(model, posterior, x)[name]()))
    except InputError as refused:
        assert "\n" not in str(refused)
