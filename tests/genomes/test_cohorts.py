"""Tests of models and components of one cohort that are used on another: variants matched, coordinates kept, what is missing told."""

import warnings

import numpy as np
import pytest

from ddvi_fast import DDVI
from ddvi_fast.genomes.align import MatchReport
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.pca import GenotypePCA
from tests.genomes.files import Genotypes, write_eigenstrat, write_plink, write_vcf
from tests.genomes.test_pca import ancestry

for library in ("bed_reader", "cyvcf2"):
    pytest.importorskip(library)

SMALL = {"n_clusters": 4, "epochs": 1, "hidden": (8,), "num_steps": 2, "n_principal": 3}


def test_people_in_two_cohorts_of_different_builds_lie_at_one_place(shared_data, tmp_path):
    names = ("hapmap3", "1kg_phase1")
    stores = [import_genotypes(shared_data(f"hapmap3/{name}.bed"), tmp_path / name) for name in names]
    both = sorted(set(stores[0].samples.name) & set(stores[1].samples.name))
    rows = [np.array([list(store.samples.name).index(name) for name in both]) for store in stores]
    assert len(both) == 564
    for here, there in ((0, 1), (1, 0)):
        pca = GenotypePCA(4).fit(stores[here])
        fitted = pca.transform(stores[here], rows=rows[here])
        with pytest.warns(MatchReport, match=r"14,079 of 14,079 variants matched, 14,079 by identifier .*build"):
            projected = pca.transform(stores[there], rows=rows[there])
        assert np.linalg.norm(projected - fitted) < 0.1 * np.linalg.norm(fitted)
        assert np.array_equal(pca.transform(stores[there], rows=rows[there], unshrunk="new"), projected), "they were fitted"


@pytest.fixture
def cohort():
    """Transversions, so that a strand can be told, without missing calls."""
    codes = ancestry(60, 150, missing=0)
    return Genotypes(codes, variants=[(str(j // 40 + 1), 10 * j + 10, f"rs{j}", "AC"[j % 2], "CA"[j % 2]) for j in range(150)])


def rewritten(cohort):
    """The same genotypes in another order, with alleles swapped and on the other strand."""
    order = np.random.default_rng(1).permutation(150)
    codes, rows = cohort.codes[:, order].copy(), []
    for place, j in enumerate(order):
        chromosome, position, name, counted, other = cohort.variants[j]
        if j % 3 == 0:
            codes[:, place], counted, other = 2 - codes[:, place], other, counted
        if j % 5 == 0:
            counted, other = (allele.translate(str.maketrans("AC", "TG")) for allele in (counted, other))
        rows.append((f"chr{chromosome}", position, name, counted, other))
    return Genotypes(codes, cohort.samples, rows)


@pytest.mark.parametrize("likelihood", ["gaussian", "binomial"])
def test_a_model_sees_the_variants_that_it_was_fitted_on(cohort, tmp_path, likelihood):
    store = import_genotypes(write_plink(cohort, tmp_path / "a"), tmp_path / "store")
    again = import_genotypes(write_vcf(rewritten(cohort), tmp_path / "b.vcf"), tmp_path / "again")
    model = DDVI(**SMALL, likelihood=likelihood).fit(store)
    for fitted in (model, DDVI.load(model.save(tmp_path / "model"))):
        with pytest.warns(MatchReport, match="150 of 150 variants"):
            latents = fitted.transform(again)
        np.testing.assert_allclose(latents, model.transform(store), rtol=1e-4, atol=1e-4)
        assert np.array_equal(fitted.predict(again), model.predict(store))


@pytest.mark.parametrize("likelihood", ["gaussian", "binomial"])
def test_a_cohort_without_the_variants_is_refused_and_one_with_half_of_them_warned_of(cohort, tmp_path, likelihood, one_line):
    store = import_genotypes(write_plink(cohort, tmp_path / "a"), tmp_path / "store")
    model = DDVI(**SMALL, likelihood=likelihood).fit(store)
    for count, name in ((100, "warned"), (30, "refused")):
        part = Genotypes(cohort.codes[:, :count], cohort.samples, cohort.variants[:count])
        other = import_genotypes(write_plink(part, tmp_path / name), tmp_path / f"store {name}")
        if name == "warned":
            with pytest.warns(MatchReport, match=r"100 of 150 variants.*uncertain"):
                model.predict(other)
        else:
            assert "30 of 150 variants" in one_line(lambda other=other: model.predict(other))


def test_half_of_the_variants_do_not_halve_coordinates(cohort, tmp_path):
    store = import_genotypes(write_plink(cohort, tmp_path / "a"), tmp_path / "store")
    pca = GenotypePCA(2).fit(store)
    rows = np.sort(np.random.default_rng(0).permutation(150)[:100])
    part = Genotypes(cohort.codes[:, rows], cohort.samples, [cohort.variants[row] for row in rows])
    other = import_genotypes(write_plink(part, tmp_path / "part"), tmp_path / "store part")
    whole = pca.transform(store)
    with pytest.warns(MatchReport, match="100 of 150 variants"):
        slopes = [(pca.transform(other, missing=missing) * whole).sum() / (whole**2).sum() for missing in ("least_squares", "mean")]
    assert 0.9 < slopes[0] < 1.1 and slopes[1] < 0.8


def test_one_person_whose_file_knows_only_the_alleles_that_he_has_stays_where_he_is(cohort, tmp_path):
    """As after `plink --recode` of one person and back: the allele that nobody has is 0."""
    store = import_genotypes(write_plink(cohort, tmp_path / "a"), tmp_path / "store")
    pca = GenotypePCA(3).fit(store)
    rows = [
        (chromosome, position, name, "0" if code == 0 else counted, "0" if code == 2 else other)
        for (chromosome, position, name, counted, other), code in zip(cohort.variants, cohort.codes[7], strict=True)
    ]
    one = Genotypes(cohort.codes[7:8], cohort.samples[7:8], rows)
    person = import_genotypes(write_plink(one, tmp_path / "one"), tmp_path / "store one")
    with pytest.warns(MatchReport, match="150 of 150 variants"):
        np.testing.assert_allclose(pca.transform(person), pca.transform(store, rows=[7]), rtol=1e-4, atol=1e-4)


def test_new_people_are_unshrunk_and_those_who_were_fitted_are_not(cohort, tmp_path):
    store = store_from_codes(cohort.codes, tmp_path / "store")
    training = np.arange(40)
    pca = GenotypePCA(3).fit(store, rows=training)
    both, plain, unshrunk = (pca.transform(store, unshrunk=choice) for choice in ("new", False, True))
    assert np.array_equal(both[:40], plain[:40]) and np.array_equal(both[40:], unshrunk[40:])
    assert np.linalg.norm(unshrunk[40:]) > 1.2 * np.linalg.norm(plain[40:])
    renamed = store.with_samples(type(store.samples)(np.array([f"other{j}" for j in range(60)], object)))
    assert np.array_equal(pca.transform(renamed, unshrunk="new")[:40], plain[:40]), "the same genotypes under another name"
    strangers = store_from_codes(cohort.codes[40:], tmp_path / "strangers")  # with the names of people who were fitted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatchReport)
        np.testing.assert_allclose(pca.transform(strangers, unshrunk="new"), unshrunk[40:], rtol=1e-4, atol=1e-3)


def test_the_estimator_gives_new_people_unshrunk_components(cohort, tmp_path):
    store, held = (store_from_codes(part, tmp_path / name) for part, name in ((cohort.codes[:40], "fitted"), (cohort.codes[40:], "held out")))
    model = DDVI(**SMALL).fit(store)
    unit = model.features_.scale[0]
    pca = model.features_.pca
    np.testing.assert_allclose(model.features_.of_rows(store, np.arange(40)), pca.scores_ / unit, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.features_.of_rows(held, np.arange(20)), pca.transform(held, unshrunk=True) / unit, rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["gaussian", "binomial"])
def test_models_of_stores_can_be_copied(cohort, tmp_path, likelihood):
    import pickle

    store = import_genotypes(write_eigenstrat(cohort, tmp_path / "a"), tmp_path / "store")
    model = DDVI(**SMALL, likelihood=likelihood).fit(store)
    latents = model.transform(store)
    copy = pickle.dumps(model)
    assert np.array_equal(pickle.loads(copy).transform(store), latents) and len(copy) < 10 * (1 << 20)


def test_people_with_few_calls_are_fitted_where_their_calls_put_them(tmp_path):
    """A person of whom half of the calls are missing is a training example at the place that the other half gives."""
    codes = ancestry(80, 400, missing=0)
    codes[5, ::2] = 3
    model = DDVI(**SMALL).fit(store_from_codes(codes, tmp_path / "store"))
    filled = DDVI(**{**SMALL, "n_principal": 3}, missing="mean").fit(store_from_codes(codes, tmp_path / "again"))
    places = [np.linalg.norm((each.features_.pca.scores_ / each.features_.scale)[5, :2]) for each in (model, filled)]
    whole = DDVI(**SMALL).fit(store_from_codes(ancestry(80, 400, missing=0), tmp_path / "whole"))
    expected = np.linalg.norm((whole.features_.pca.scores_ / whole.features_.scale)[5, :2])
    assert abs(places[0] - expected) < 0.25 * expected and places[1] < 0.75 * expected
