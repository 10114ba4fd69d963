"""Tests of ancestry proportions against torch.distributions, quadrature, maximum likelihood with the true frequencies, and known sources."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.distributions import Binomial

from ddvi_fast._checks import InputError
from ddvi_fast.genomes import admixture, admixture_posterior, sources
from ddvi_fast.genomes.admixture import Admixture, _fitted, held_out_log_likelihood, matched, write_proportions
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.genomes.sources import Calls


def simulated(num_sources=2, people=200, variants=2000, seed=0, missing=0.0):
    """Codes, proportions and frequencies: half of the people are of one source each, the others 70/30 or of all; F_ST 0.1 (Balding and Nichols)."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(0.1, 0.9, variants)
    frequencies = generator.beta(9 * mean, 9 * (1 - mean), (num_sources, variants))
    shares = np.eye(num_sources)[np.arange(people) % num_sources]
    mixed = people // 2
    shares[mixed:] = generator.dirichlet([14, 6] if num_sources == 2 else np.ones(num_sources), people - mixed)
    codes = generator.binomial(2, shares @ frequencies).astype(np.uint8)
    codes[generator.random(codes.shape) < missing] = 3
    return codes, shares, frequencies


def labels_of(shares):
    return np.where(shares.max(1) == 1, np.array(["A", "B", "C", "D"])[shares.argmax(1)], "")


def most_likely(codes, frequencies):
    """Share of the first of two sources at the maximum of the likelihood on a grid, and the posterior's mean and deviation under a flat prior."""
    grid = np.linspace(0, 1, 1001)[1:-1]
    f = grid[:, None] * frequencies[0] + (1 - grid[:, None]) * frequencies[1]
    counted, other = np.where(codes == 3, 0, codes), np.where(codes == 3, 0, 2 - codes.astype(int))
    log = counted @ np.log(f).T + other @ np.log1p(-f).T
    weights = np.exp(log - log.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mean = weights @ grid
    return grid[log.argmax(1)], mean, np.sqrt(weights @ grid**2 - mean**2)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A supervised fit to 200 people, half of whom are labelled; a tenth of the calls is missing."""
    codes, shares, frequencies = simulated(missing=0.1)
    store = store_from_codes(codes, tmp_path_factory.mktemp("two") / "store")
    model = Admixture(2).fit(store, labels_of(shares))
    return codes, shares, frequencies, store, model, model.proportions(store)


def test_log_likelihood_is_that_of_the_binomial_distribution():
    codes, shares, frequencies = (torch.from_numpy(part) for part in simulated(3, 20, 50, missing=0.2))
    expected = Binomial(2, shares @ frequencies).log_prob(torch.where(codes == 3, 0, codes).double()) - np.log(2) * (codes == 1)
    expected = torch.where(codes == 3, 0, expected).sum(1)
    edge = (frequencies < sources.EDGE) | (frequencies > 1 - sources.EDGE)
    assert not edge.any()
    torch.testing.assert_close(sources.log_likelihood(Calls.of(codes), shares.float(), frequencies.float()), expected, rtol=1e-4, atol=1e-3)


def test_log_likelihood_of_samples_is_that_of_each_of_them():
    """Also of 1,500 alleles, which are no multiple of those that are multiplied, and of proportions whose rounded sum is not 1."""
    generator = np.random.default_rng(0)
    codes, _, frequencies = (torch.from_numpy(part) for part in simulated(3, 7, 1500, missing=0.2))
    frequencies = frequencies.float().clamp(sources.EDGE, 1 - sources.EDGE)
    codes[0] = 3  # nothing is called
    samples = torch.from_numpy(generator.dirichlet(np.ones(3), (11, 7)) * generator.uniform(1, 1 + 1e-5, (11, 7, 1))).float()
    exact = samples.double() / samples.double().sum(-1, keepdim=True)
    calls = Calls(*(part.double() for part in Calls.of(codes)))
    expected = torch.stack([sources.log_likelihood(calls, sample, frequencies.double()) for sample in exact])
    torch.testing.assert_close(sources.log_likelihood_of_samples(codes, samples, frequencies), expected, rtol=0, atol=1e-3)
    rare = torch.full((3, 64), sources.EDGE)
    found = sources.log_likelihood_of_samples(torch.full((1, 64), 2), torch.full((1, 1, 3), 1 / 3), rare)
    assert float(found) == pytest.approx(128 * np.log(sources.EDGE), rel=1e-5)  # whose probabilities multiply to 0 in single precision


def test_curvature_is_that_of_finite_differences():
    codes, shares, frequencies = (torch.from_numpy(part) for part in simulated(3, 12, 200, missing=0.1))
    shares = 0.8 * shares + 0.2 / 3
    calls = Calls(*(part.double() for part in Calls.of(codes)))

    def at(free):
        return sources.log_likelihood(calls, torch.cat((free, 1 - free.sum(-1, keepdim=True)), -1), frequencies).sum()

    gradient = torch.autograd.functional.jacobian(at, shares[:, :-1])
    hessian = torch.autograd.functional.hessian(at, shares[:, :-1])
    found = sources.curvature(calls, shares, frequencies)
    torch.testing.assert_close(found[0], gradient)
    torch.testing.assert_close(found[1], -torch.stack([hessian[row, :, row] for row in range(12)]))


def test_fitted_proportions_maximize_the_likelihood():
    codes, _, frequencies = simulated()
    found = sources.fitted_proportions(Calls.of(torch.from_numpy(codes)), torch.full((200, 2), 0.5), torch.from_numpy(frequencies).float(), 60)
    assert np.abs(found[:, 0].numpy() - most_likely(codes, frequencies)[0]).max() < 3e-3


def test_counts_of_people_of_one_source_are_those_of_their_alleles():
    codes, shares, _ = simulated(3, 60, 100, missing=0.2)
    pure = codes[:30]
    counted, other = sources.allele_counts(Calls.of(torch.from_numpy(pure)), torch.from_numpy(shares[:30]).float(), 5, sources.shrunk)
    for source in range(3):
        its = np.where(shares[:30, source : source + 1] == 1, pure, 3)
        np.testing.assert_allclose(counted[source], (its == 1).sum(0) + 2 * (its == 2).sum(0), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(other[source], (its == 1).sum(0) + 2 * (its == 0).sum(0), rtol=1e-4, atol=1e-3)


def test_shrunk_frequencies_are_nearer_to_the_true_ones():
    _, _, frequencies = simulated(4, variants=4000)
    counted = np.random.default_rng(1).binomial(20, frequencies)
    found = sources.shrunk(torch.from_numpy(counted).float(), torch.from_numpy(20 - counted).float()).numpy()
    assert np.square(found - frequencies).mean() < 0.85 * np.square(counted / 20 - frequencies).mean()


def test_sources_that_differ_by_chance_alone_are_one():
    counted = torch.from_numpy(np.random.default_rng(0).binomial(40, 0.3, (3, 20_000))).float()
    found = sources.shrunk(counted, 40 - counted)
    assert float(found.std(0).mean()) < 0.1 * float((counted / 40).std(0).mean())


def test_supervised_proportions_are_as_near_as_maximum_likelihood_with_the_true_frequencies(two):
    codes, shares, frequencies, _, model, found = two
    assert model.sources_ == ("A", "B")
    mixed = slice(100, None)
    errors = found.mean[mixed, 0] - shares[mixed, 0]
    best = most_likely(codes[mixed], frequencies)[0] - shares[mixed, 0]
    assert np.sqrt(np.square(errors).mean()) < 1.1 * np.sqrt(np.square(best).mean())
    np.testing.assert_allclose(found.samples.sum(-1), 1, atol=1e-5)


def test_posterior_is_that_of_quadrature(two):
    codes, _, _, _, model, found = two
    _, mean, deviation = most_likely(codes, model.frequencies_.astype(np.float64))
    assert np.abs((found.mean[:, 0] - mean) / deviation).max() < 0.5 and np.abs((found.mean[:, 0] - mean) / deviation).mean() < 0.1
    assert abs(np.mean(found.samples[..., 0].std(0) / deviation) - 1) < 0.05
    assert np.median(found.effective_sample_size) > 200


def test_unlabelled_fit_finds_sources_and_covers_proportions(tmp_path):
    codes, shares, _ = simulated(2, 600, 2000, seed=3)
    store = store_from_codes(codes, tmp_path / "store")
    found = Admixture(2).fit(store).proportions(store, 200)
    order = matched(found.mean, shares)
    mixed = slice(300, None)
    lower, upper = (end[mixed, order[0]] for end in found.interval())
    assert 0.85 <= ((lower <= shares[mixed, 0]) & (shares[mixed, 0] <= upper)).mean() <= 0.95
    assert np.corrcoef(found.mean[mixed, order[0]], shares[mixed, 0])[0, 1] > 0.9
    assert (np.diff(found.mean.sum(0)) <= 1).all()  # from the largest share to the smallest


def test_proportions_without_labels_are_nearly_as_near_as_with_the_true_frequencies(tmp_path):
    """200 people, 100 of whom are of one source each. Frequencies that are drawn together would have 1.3 times the error."""
    ratios = []
    for seed in range(3):
        codes, shares, frequencies = simulated(seed=seed)
        store = store_from_codes(codes, tmp_path / str(seed))
        found, _ = _fitted(store, torch.from_numpy(codes), 2, 0, sources.fractions)
        errors = found[:, matched(found.numpy(), shares)[0]].numpy() - shares[:, 0]
        best = most_likely(codes, frequencies)[0] - shares[:, 0]
        ratios.append(np.sqrt(np.square(errors[100:]).mean() / np.square(best[100:]).mean()))
    assert np.mean(ratios) < 1.15


def test_fewer_calls_give_wider_intervals(two, tmp_path):
    codes, _, _, _, model, found = two
    few = codes.copy()
    few[:, np.random.default_rng(0).random(2000) < 0.95] = 3
    few[0] = 3
    rare = model.proportions(store_from_codes(few, tmp_path / "few"))
    lower, upper = rare.interval()
    width = (upper - lower)[:, 0]
    assert np.median(width) > 3 * np.median(np.subtract(*found.interval()[::-1])[:, 0])
    _, mean, deviation = most_likely(few, model.frequencies_.astype(np.float64))
    assert np.abs((rare.mean[:, 0] - mean) / deviation).mean() < 0.1
    assert abs(np.mean(rare.samples[..., 0].std(0) / deviation) - 1) < 0.05
    assert abs(width[0] - 0.9) < 0.12  # a person without calls has the prior


def test_the_same_seed_gives_the_same_bits_and_one_person_the_same_as_all(two, tmp_path, monkeypatch):
    codes, shares, _, store, model, found = two
    monkeypatch.setattr(admixture_posterior, "_TRAINING", dataclasses.replace(admixture_posterior._TRAINING, steps=10))
    one, other = (Admixture(2).fit(store, labels_of(shares)).proportions(store) for _ in range(2))
    np.testing.assert_array_equal(one.samples, other.samples)
    alone = model.proportions(store_from_codes(codes[:1], tmp_path / "alone"))
    np.testing.assert_allclose(alone.mean, found.mean[:1], atol=5e-3)


def test_one_source(tmp_path):
    codes, _, _ = simulated(2, 30, 100, missing=0.1)
    store = store_from_codes(codes, tmp_path / "store")
    model = Admixture(1).fit(store)
    called = codes != 3
    mean = (np.where(called, codes, 0).sum(0) + 0.5) / (2 * called.sum(0) + 1)
    np.testing.assert_allclose(model.frequencies_[0], mean, atol=0.02)
    assert (model.proportions(store).mean == 1).all()


def test_held_out_genotypes_choose_the_number_of_sources(tmp_path):
    codes, _, _ = simulated(3, 90, 1500)
    store = store_from_codes(codes, tmp_path / "store")
    scores = [held_out_log_likelihood(store, number) for number in (1, 2, 3, 5)]
    assert int(np.argmax(scores)) == 2


def test_files_are_those_of_admixture(two, tmp_path):
    *_, model, found = two
    paths = write_proportions(tmp_path, model, found, "cohort")
    assert [path.name for path in paths] == ["cohort.2.Q", "cohort.2.P", "cohort.tsv"]
    np.testing.assert_allclose(np.loadtxt(paths[0]), found.mean, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(paths[1]), model.frequencies_.T, atol=1e-6)
    lines = [line.split("\t") for line in paths[2].read_text().splitlines()]
    assert lines[0] == ["name", "effective", "A", "A_low", "A_high", "B", "B_low", "B_high"]
    assert len(lines) == 201 and all(float(line[3]) <= float(line[2]) <= float(line[4]) for line in lines[1:])


def test_tiles_do_not_change_the_result(two, monkeypatch):
    from ddvi_fast.genomes import admixture

    store, model = two[3:5]
    monkeypatch.setattr(admixture, "_VALUES", 2000 * 7)
    torch.testing.assert_close(model._summaries(store)[:, 0], model._posterior.model.x[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda store: Admixture(0), "num_sources: expected"),
        (lambda store: Admixture(2, concentration=0.0), "concentration: expected"),
        (lambda store: Admixture(31).fit(store), "num_sources: expected at most 30, the number of people"),
        (lambda store: Admixture(3).fit(store, ["A", "B"] * 15), "labels: expected 3 sources, got 2: A, B"),
        (lambda store: Admixture(2).fit(store, ["A"]), "labels: expected 30 labels"),
        (lambda store: Admixture(2).proportions(store), "expected a fitted model"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, call, message):
    store = store_from_codes(simulated(2, 30, 100)[0], tmp_path / "store")
    with pytest.raises(InputError, match=message):
        call(store)


def test_summaries_of_simulations_have_their_curvature():
    """Around its proportions, the maximum of a simulated summary has the inverse of its own curvature as covariance."""
    factor = torch.linalg.cholesky(torch.tensor([[400.0, 100.0], [100.0, 900.0]], dtype=torch.float64))
    x = torch.cat((torch.zeros(2, dtype=torch.float64), factor[[0, 1, 1], [0, 0, 1]])).expand(5, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z, made = admixture_posterior.Summaries(x, 3, 1.0).simulate(20_000)
    centre, own = admixture_posterior.parts(made.double(), 3)
    whole = own @ own.mT
    ratio = whole[:, 0, 0] / 400
    assert 1e-3 * 0.99 < float(ratio.min()) < 0.01 and 0.99 < float(ratio.max()) <= 1.001
    assert (whole / ratio[:, None, None] - factor @ factor.T).abs().max() < 0.1
    noise = (torch.linalg.cholesky(whole).mT @ (centre - z[:, :2].double()).unsqueeze(-1)).squeeze(-1)
    assert (noise.mean(0).abs() < 4 / 20_000**0.5).all()
    torch.testing.assert_close(noise.T @ noise / 20_000, torch.eye(2, dtype=torch.float64), rtol=0, atol=4 * (2 / 20_000) ** 0.5)


@pytest.mark.parametrize(("kept", "tile"), [(1000, 2000), (1000, 340), (3000, 8000), (10_000, 100)])
def test_spaced_genotypes_have_equal_distances(tmp_path, monkeypatch, kept, tile):
    store = store_from_codes(simulated(people=20, variants=401)[0], tmp_path / "store")
    monkeypatch.setattr(admixture, "_KEPT", kept)
    monkeypatch.setattr(admixture, "_VALUES", tile)
    spacing = -(-20 * 401 // kept)
    assert torch.equal(admixture._evenly_spaced(store), torch.from_numpy(store.genotypes(np.arange(20)))[:, ::spacing])
