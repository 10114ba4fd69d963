"""Tests of places given the variants that were called: against Gaussian conditionals, closed forms, quadrature, and the truth of simulations."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.distributions import Binomial, Categorical, MixtureSameFamily, MultivariateNormal

from ddvi_fast import cli
from ddvi_fast._checks import InputError
from ddvi_fast.genomes import place_table, place_training
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.genomes.place import PlacePosterior
from ddvi_fast.genomes.place_calls import thinned
from ddvi_fast.genomes.place_features import Features, features, least_squares, predicted
from ddvi_fast.genomes.place_reference import Clusters, Reference, Summary
from ddvi_fast.genomes.place_training import Examples, Steps, chosen_steps, conditional
from ddvi_fast.genomes.places import Places
from ddvi_fast.rng import Draws

EYE = torch.eye(2, dtype=torch.float64)


def people(count=300, variants=500, seed=0):
    """Codes of three populations (F_ST 0.1, Balding and Nichols), and of people who are mixed of two of them."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(0.1, 0.9, variants)
    frequencies = generator.beta(9 * mean, 9 * (1 - mean), (3, variants))
    shares = np.eye(3)[np.arange(count) % 3]
    mixed = generator.random(count) < 0.3
    shares[mixed] = generator.dirichlet([1, 1, 1e-3], mixed.sum())
    return generator.binomial(2, shares @ frequencies).astype(np.uint8)


def reference_of(size=3, variants=40, seed=0, noise=0.7, reading=0.9, number=2):
    """A reference with random tables and standardized genotypes."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.linalg.qr(torch.randn(variants, size, generator=generator, dtype=torch.float64)).Q.float()
    frequencies = 0.1 + 0.8 * torch.rand(number, variants, generator=generator)
    centres = torch.randn(number, 2, generator=generator, dtype=torch.float64)
    clusters = Clusters(torch.full((number,), 1 / number).double(), centres, EYE.expand(number, 2, 2))
    variances = torch.linspace(5, 2, size, dtype=torch.float64)
    return Reference(
        0.2 + 1.6 * torch.rand(variants, generator=generator), 0.5 + torch.rand(variants, generator=generator), loadings, frequencies, variances,
        noise, reading, clusters, 1.7,
    )  # fmt: skip


def gaussian_summary(reference, values, called, haploid):
    """Summary of standardized values [R, M], which need not be genotypes."""
    loadings, called = reference.loadings.double(), called.double()
    normal = torch.einsum("rm,mi,mj->rij", called, loadings, loadings)
    rows = len(values)
    return Summary((values * called) @ loadings, normal, torch.zeros(rows, 2).double(), called.sum(1), torch.full((rows,), haploid))


def test_summaries_are_sums_over_the_calls_alone():
    reference, generator = reference_of(), torch.Generator().manual_seed(1)
    codes = torch.randint(0, 4, (6, 40), generator=generator).to(torch.uint8)
    codes[0] = torch.where(codes[0] == 1, 2, codes[0])  # without heterozygous calls
    summary = reference.summarize(lambda first, count: codes[:, first : first + count], 6)
    called = codes != 3
    values = torch.where(called, (codes - reference.mean) * reference.scale, 0).double()
    expected = gaussian_summary(reference, values, called, False)
    torch.testing.assert_close(summary.products, expected.products, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(summary.normal, expected.normal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summary.called, expected.called)
    assert summary.haploid.tolist() == [True, False, False, False, False, False]
    log = Binomial(2, reference.frequencies.double().unsqueeze(1)).log_prob(torch.where(called, codes, 0).double()) - math.log(2) * (codes == 1)
    torch.testing.assert_close(summary.log_likelihoods, torch.where(called, log, 0).sum(2).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("haploid", [False, True])
def test_prediction_is_the_exact_conditional_of_the_gaussian_model(haploid):
    reference, generator = reference_of(), torch.Generator().manual_seed(2)
    loadings = reference.loadings.double()
    covariance = loadings @ torch.diag(reference.variances) @ loadings.T + reference.noise * torch.eye(40, dtype=torch.float64)
    called = torch.rand(5, 40, generator=generator) < 0.4
    values = torch.randn(5, 40, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    place, scores = predicted(reference, gaussian_summary(reference, values, called, haploid))
    read = covariance + (reference.reading if haploid else 0) * torch.eye(40, dtype=torch.float64)
    for row in range(5):
        mask = called[row]
        weights = torch.linalg.solve(read[mask][:, mask], values[row, mask])
        torch.testing.assert_close(place[row], (loadings.T @ covariance[:, mask] @ weights)[:2] / reference.unit, rtol=1e-6, atol=1e-7)
        expected = torch.diag(reference.variances) @ loadings[mask].T @ weights
        torch.testing.assert_close(scores[row], expected, rtol=1e-6, atol=1e-7)


def test_least_squares_has_the_error_that_it_states():
    reference, count = reference_of(), 40_000
    generator = torch.Generator().manual_seed(3)
    called = (torch.rand(1, 40, generator=generator) < 0.5).expand(count, -1)
    loadings = reference.loadings.double()
    scores = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 3
    values = scores @ loadings.T + math.sqrt(reference.noise) * torch.randn(count, 40, generator=generator, dtype=torch.float64)
    place, error = least_squares(reference, gaussian_summary(reference, values, called, False), 3)
    found = torch.cov((place - (values @ loadings)[:, :2] / reference.unit).T)
    torch.testing.assert_close(found, error[0], rtol=0.05, atol=0.05 * float(error[0].diagonal().max()))
    everything = gaussian_summary(reference, values[:4], torch.ones(4, 40, dtype=torch.bool), False)
    place, error = least_squares(reference, everything, 3)
    torch.testing.assert_close(place, (values[:4] @ loadings)[:, :2] / reference.unit, rtol=1e-5, atol=1e-5)
    assert float(error.abs().max()) < 1e-5
    assert features(dataclasses.replace(reference, unit=0.01), everything).x.isfinite().all()  # rounding makes no variance negative


def test_a_person_without_calls_has_the_places_of_the_clusters():
    reference = reference_of()
    none = torch.full((1, 40), 3, dtype=torch.uint8)
    read = features(reference, reference.summarize(lambda first, count: none[:, first : first + count], 1))
    clusters = reference.clusters
    torch.testing.assert_close(read.mean[0], clusters.centres.mean(0), rtol=1e-3, atol=1e-3)
    around = clusters.centres - clusters.centres.mean(0)
    torch.testing.assert_close(read.factor[0] @ read.factor[0].T, EYE + around.T @ around / 2, rtol=1e-2, atol=1e-2)
    assert bool(torch.isfinite(read.x).all())


def test_thinned_calls_are_a_random_share_with_random_alleles():
    codes = torch.arange(4, dtype=torch.uint8).repeat(3, 5000)
    haploid = torch.tensor([False, True, False])
    found = thinned(codes, torch.tensor([0.3, 0.3, 1.0]), haploid, Draws(0))
    assert bool((found[2] == codes[2]).all())
    kept = (found[:, codes[0] != 3] != 3).double().mean(1)
    assert bool(((kept[:2] - 0.3).abs() < 4 * math.sqrt(0.21 / 15_000)).all())
    assert bool((found[0] == codes[0])[found[0] != 3].all())
    read = found[1][codes[1] == 1]
    read = read[read != 3]
    assert bool((read != 1).all()) and abs(float((read == 2).double().mean()) - 0.5) < 4 * math.sqrt(0.25 / len(read))
    same = codes[1] != 1
    assert bool((found[1] == codes[1])[same & (found[1] != 3)].all())
    # What is not called does not matter, and rows have the same calls in any batch.
    other = torch.where(found == 3, 2, codes)
    assert bool((thinned(other, torch.tensor([0.3, 0.3, 1.0]), haploid, Draws(0))[found != 3] == found[found != 3]).all())
    assert bool((thinned(codes[1:2], torch.tensor([0.3]), haploid[1:2], Draws(0, 1)) == found[1:2]).all())


def mixture(wide):
    """A posterior of two people, and the same distributions of torch for each."""
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(5, 2, 2, generator=generator, dtype=torch.float64)
    factor = torch.tensor([[[0.5, 0.0], [0.2, 0.4]], [[0.3, 0.0], [-0.1, 0.6]]], dtype=torch.float64)
    further = (torch.ones(2, 2).double(), 2 * EYE.expand(2, 2, 2)) if wide else None
    weights = torch.full((6,), 0.95 / 5) if wide else torch.full((5,), 0.2)
    same = []
    for person in range(2):
        means, factors = centres[:, person], factor[person].expand(5, 2, 2)
        if wide:
            weights[-1] = 0.05
            means, factors = torch.cat((means, further[0][person, None])), torch.cat((factors, further[1][person, None]))
        same.append(MixtureSameFamily(Categorical(weights.double()), MultivariateNormal(means, scale_tril=factors)))
    return Places(np.array(["a", "b"], object), centres, factor, torch.ones(2), further), same


@pytest.mark.parametrize("wide", [False, True])
def test_density_mean_and_spread_are_those_of_the_mixture(wide):
    places, same = mixture(wide)
    points = torch.tensor([[0.3, -0.2], [1.0, 4.0]], dtype=torch.float64)
    expected = [float(one.log_prob(point)) for one, point in zip(same, points, strict=True)]
    assert places.log_prob(points) == pytest.approx(expected, abs=1e-4)
    assert places.mean == pytest.approx(torch.stack([one.mean for one in same]).numpy(), abs=1e-6)
    assert places.spread == pytest.approx(torch.stack([one.stddev for one in same]).numpy(), abs=1e-6)
    drawn = places.sample(40_000)
    assert np.abs(drawn.mean(0) - places.mean).max() < 4 * places.spread.max() / 200
    assert drawn.std(0) == pytest.approx(places.spread, rel=0.05)


@pytest.mark.parametrize("wide", [False, True])
def test_regions_have_their_probability_and_area(wide):
    places, same = mixture(wide)
    side = torch.linspace(-10, 10, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    cell = float(side[1] - side[0]) ** 2
    areas = places.area(0.8, num_samples=20_000)
    for person, one in enumerate(same):
        density = one.log_prob(grid).exp()
        assert float(density.sum()) * cell == pytest.approx(1, abs=1e-3)
        ordered = density.sort(descending=True).values
        number = int((ordered.cumsum(0) * cell < 0.8).sum())
        assert areas[person] == pytest.approx(number * cell, rel=0.05)
        point = torch.zeros(2, 2, dtype=torch.float64)
        expected = float(density[density > one.log_prob(point[0]).exp()].sum()) * cell
        assert places.credibility(point, num_samples=20_000)[person] == pytest.approx(expected, abs=0.02)


def test_a_gaussian_has_the_area_of_its_ellipse():
    factor = torch.tensor([[[0.5, 0.0], [0.2, 0.4]]], dtype=torch.float64)
    places = Places(np.array(["a"], object), torch.zeros(1, 1, 2).double(), factor, torch.ones(1))
    assert places.area(0.9, num_samples=20_000)[0] == pytest.approx(-2 * math.pi * math.log(0.1) * 0.2, rel=0.05)
    point = torch.tensor([[0.5, 0.2]], dtype=torch.float64)  # at a distance of 1 along the first axis of the frame
    assert places.credibility(point, num_samples=20_000)[0] == pytest.approx(1 - math.exp(-0.5), abs=0.02)
    ends = places.extents(0.5, num_samples=20_000)[0]
    np.testing.assert_allclose(ends, math.sqrt(-2 * math.log(0.5)) * np.sqrt([0.25, 0.2])[:, None] * [-1, 1], rtol=0.03)


def test_training_recovers_an_exact_posterior():
    """Places N(0, I) that are seen with an error of known size: the posterior is Gaussian, and known."""
    generator = torch.Generator().manual_seed(5)

    def observed(count):
        place = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        size = torch.exp(torch.rand(count, 1, generator=generator, dtype=torch.float64) * 2 - 1.5)
        seen = place + size * torch.randn(count, 2, generator=generator, dtype=torch.float64)
        x = torch.cat((seen, size.log()), 1).float()
        return Features(x, torch.zeros(count, 2).double(), EYE.expand(count, 2, 2)), place, seen / (1 + size**2), size / (1 + size**2).sqrt()

    read, place, _, _ = observed(20_000)
    fitted = place_training.fit(Examples(read, place, torch.zeros(20_000)), Steps(400, 400), 0)
    read, place, mean, size = observed(1000)
    exact = MultivariateNormal(mean, scale_tril=size[..., None] * EYE).log_prob(place).mean()
    for paths in (0, 300):
        found = conditional(fitted, read, paths, 1e-3, Draws(0))
        places = Places(np.arange(1000).astype(object), found.centres, found.factor, torch.ones(1000), found.wide)
        assert float(exact) - places.log_prob(place).mean() < 0.06
        inside = (places.regions(place, (0.9,), 200)[0] <= 0.9).mean()
        assert abs(inside - 0.9) < 4 * math.sqrt(0.09 / 1000) + 0.01


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A posterior of simulated people, and others who were not fitted, in the same store."""
    store = store_from_codes(people(1500), tmp_path_factory.mktemp("places") / "store")
    return store, PlacePosterior(num_components=4, num_clusters=8, repeats=4, steps=300).fit(store, np.arange(1000)), np.arange(1000, 1500)


@pytest.fixture(scope="module")
def sparse(fitted, tmp_path_factory):
    """The people who were not fitted, with 20% of their calls."""
    store, _, others = fitted
    codes = torch.from_numpy(store.genotypes(others))
    kept = thinned(codes, torch.full((len(others),), 0.2), torch.zeros(len(others), dtype=torch.bool), Draws(7))
    return kept.numpy(), store_from_codes(kept.numpy(), tmp_path_factory.mktemp("sparse") / "store")


def truth_of(model, store, others):
    reference = model.reference_
    return reference.places(reference.summarize(lambda first, count: torch.from_numpy(store.genotypes(others, first, count)), len(others)))


@pytest.mark.parametrize("people, repeats, first", [(12, 40, True), (2000, 1, False)])
def test_few_people_who_are_learnt_by_heart_stop_the_training(people, repeats, first):
    """Features have a number by which each person is known, which says nothing of the places of others."""
    generator = torch.Generator().manual_seed(6)
    place, known = (torch.randn(people, size, generator=generator, dtype=torch.float64).repeat(repeats, 1) for size in (2, 8))
    x = torch.cat((place + 0.5 * torch.randn(len(place), 2, generator=generator, dtype=torch.float64), known), 1).float()
    read = Features(x, torch.zeros(len(x), 2).double(), EYE.expand(len(x), 2, 2))
    steps = chosen_steps(Examples(read, place, (torch.arange(people) % 6).repeat(repeats)), 240, 0.01, 0)
    assert (steps.gaussian < 240) == first


def test_the_place_is_the_projection_of_all_genotypes(fitted):
    store, model, others = fitted
    scores = model.pca_.transform(store, others)
    np.testing.assert_allclose(truth_of(model, store, others).numpy(), scores[:, :2] / model.reference_.unit, rtol=1e-3, atol=1e-3)
    places = model.posterior(store, others, num_paths=20)
    assert np.abs(places.mean - scores[:, :2] / model.reference_.unit).max() < 0.01
    assert places.spread.max() < 0.02


def test_regions_cover_the_true_places_of_new_people(fitted, sparse):
    store, model, others = fitted
    places = model.posterior(sparse[1])
    truth = truth_of(model, store, others) + 0.01 * torch.randn(len(others), 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    inside = places.credibility(truth) <= 0.9
    assert abs(inside.mean() - 0.9) < 4 * math.sqrt(0.09 / len(others)) + 0.02
    place, error = least_squares(model.reference_, model.reference_.summarize(lambda a, b: torch.from_numpy(sparse[0][:, a : a + b]), len(others)), 2)
    plain = MultivariateNormal(place, error + 1e-4 * EYE).log_prob(truth).mean()
    assert places.log_prob(truth).mean() > float(plain) + 0.1


def test_variants_that_are_missing_or_absent_are_the_same(fitted, sparse, tmp_path):
    _, model, _ = fitted
    codes = sparse[0][:30].copy()
    codes[:, ::3] = 3
    missing = store_from_codes(codes, tmp_path / "missing")
    whole = model.posterior(missing, num_paths=10)
    variants = missing.variants.take(np.arange(codes.shape[1]) % 3 != 0)
    absent = store_from_codes(codes[:, np.arange(codes.shape[1]) % 3 != 0], tmp_path / "absent")
    absent.variants = variants
    found = model.posterior(absent, num_paths=10)
    torch.testing.assert_close(found.centres, whole.centres)
    assert found.called.tolist() == whole.called.tolist() == (codes != 3).sum(1).tolist()


def test_a_person_has_the_same_posterior_in_any_company(fitted, sparse):
    _, model, _ = fitted
    together, alone = model.posterior(sparse[1], [3, 4, 5], family="gaussian"), model.posterior(sparse[1], [4], family="gaussian")
    torch.testing.assert_close(together.centres[:, 1:2], alone.centres, rtol=1e-5, atol=1e-6)


def test_a_saved_posterior_is_the_same(fitted, sparse, tmp_path):
    _, model, _ = fitted
    model.save(tmp_path / "saved")
    loaded = PlacePosterior.load(tmp_path / "saved")
    expected, found = (one.sample(sparse[1], 5, rows=[0, 1]) for one in (model, loaded))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="expected a new folder"):
        model.save(tmp_path / "saved")


def test_the_command_writes_places_and_regions(fitted, sparse, tmp_path, capsys):
    _, model, _ = fitted
    model.save(tmp_path / "saved")
    arguments = ["place", str(tmp_path / "saved"), str(sparse[1].path), "--out", str(tmp_path / "places.tsv")]
    assert cli.main(arguments) == 0 and capsys.readouterr().out == f"{tmp_path / 'places.tsv'}\n"
    heads, *rows = [line.split("\t") for line in (tmp_path / "places.tsv").read_text().splitlines()]
    table = dict(zip(heads, np.array(rows).T, strict=True))
    assert table.pop("name").tolist() == sparse[1].samples.name.tolist()
    table = {name: values.astype(float) for name, values in table.items()}
    places = model.posterior(sparse[1])
    np.testing.assert_allclose(table["called"], (sparse[0] != 3).mean(1), atol=1e-4)
    for axis in "12":
        np.testing.assert_allclose(table[f"place{axis}"], places.mean[:, int(axis) - 1], rtol=1e-3, atol=1e-4)
        assert (table[f"low{axis}_90"] < table[f"low{axis}_50"]).all() and (table[f"high{axis}_50"] < table[f"high{axis}_90"]).all()
    assert (table["area_50"] < table["area_80"]).all() and (table["area_80"] < table["area_90"]).all()
    np.testing.assert_allclose(table["area_90"], places.area(0.9), rtol=1e-3)
    for further, message in (([], "out: expected a new file"), (["--overwrite", "--seed", "1"], "seed: expected none for"),
                             (["--overwrite", "--save", str(tmp_path / "new")], "save: expected none for")):  # fmt: skip
        assert cli.main([*arguments, *further]) == 2 and message in capsys.readouterr().err


def test_the_command_fits_a_panel_and_saves_it(tmp_path, monkeypatch):
    class Quick(PlacePosterior):
        def __init__(self, **options):
            super().__init__(**{"repeats": 1, "steps": 2, "num_clusters": 2, "num_components": 2, **options})

    monkeypatch.setattr(place_table, "PlacePosterior", Quick)
    store = store_from_codes(people(40, 100), tmp_path / "store")
    written = place_table.place(store.path, store.path, tmp_path / "a.tsv", save=tmp_path / "saved", seed=3)
    assert written == [tmp_path / "a.tsv", tmp_path / "saved"]
    place_table.place(tmp_path / "saved", store.path, tmp_path / "b.tsv")
    assert (tmp_path / "a.tsv").read_text() == (tmp_path / "b.tsv").read_text()
    assert PlacePosterior.load(tmp_path / "saved").seed == 3
    with pytest.raises(InputError, match="save: expected a new folder"):
        place_table.place(store.path, store.path, tmp_path / "c.tsv", save=tmp_path / "saved")
    monkeypatch.setattr(Quick, "fit", lambda *arguments: pytest.fail("a fit of minutes before the variants are compared"))
    few = store_from_codes(people(5, 10), tmp_path / "few")
    with pytest.raises(InputError, match="store: expected at least 20 of the variants of the panel"):
        place_table.place(store.path, few.path, tmp_path / "c.tsv")


def test_bad_arguments_are_named(fitted, tmp_path):
    store, model, _ = fitted
    with pytest.raises(InputError, match="PlacePosterior: expected a fitted one"):
        PlacePosterior().posterior(store)
    with pytest.raises(InputError, match="rows: expected at least 20 samples"):
        PlacePosterior().fit(store, [0, 1])
    with pytest.raises(InputError, match="num_components"):
        PlacePosterior(num_components=1)
    with pytest.raises(InputError, match="family"):
        model.posterior(store, [0], family="flow")
    with pytest.raises(InputError, match="places: expected shape"):
        model.posterior(store, [0], num_paths=2).log_prob(np.zeros((2, 2)))
    few = store_from_codes(store.genotypes(slice(0, 30))[:, :10], tmp_path / "few")
    with pytest.raises(InputError, match="at least 20 of the variants of the panel"):
        model.posterior(few)
    with pytest.warns(UserWarning, match="few to train"):
        PlacePosterior(repeats=1, steps=2, num_clusters=2, num_components=2).fit(store, np.arange(40))
