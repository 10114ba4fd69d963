"""The table of places of people of whom few variants are called: its figures, its folds, its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import records
from ddvi_fast import InputError
from ddvi_fast.cli.reproduce import main
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.genomes.place import PlacePosterior
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.paper import ancestry_missing
from ddvi_fast.paper.ancestry_missing import SHARES, Fold, Settings, calibrated
from ddvi_fast.paper.ancestry_missing_table import LEVELS, POSTERIORS, joined
from ddvi_fast.paper.study_settings import read

TINY = ("dataset=genomes", "folds=3", "clusters=3", "repeats=2", "steps=10", "paths=5", "samples=20", "validations=1")


@pytest.fixture
def store(tmp_path: Path) -> GenotypeStore:
    """90 people of three populations."""
    generator = np.random.default_rng(0)
    frequencies = generator.uniform(0.1, 0.9, (3, 200))
    return store_from_codes(generator.binomial(2, frequencies[np.arange(90) % 3]), tmp_path / "store")


def test_scaled_regions_cover_their_share_of_the_people_who_scale_them() -> None:
    credibility = np.random.default_rng(1).beta(2, 1, 1000)
    levels = calibrated(credibility)
    assert [(credibility <= level).mean() for level in levels] == pytest.approx(LEVELS, abs=2e-3)
    assert all(found > stated for found, stated in zip(levels, LEVELS, strict=True))  # the regions were too small


def test_figures_are_those_of_all_people() -> None:
    """Two folds of different sizes count by their people."""

    def fold(scores: list[float], credibility: list[float], levels: list[float], area: float) -> list[dict[str, object]]:
        one = {"log_score": scores, "credibility": credibility, "levels": levels, "areas": [area] * 3, "calibrated_areas": [2 * area] * 3}
        return [{"share": 0.1, "haploid": False, "posteriors": dict.fromkeys(POSTERIORS, one)}]

    (found,) = joined([fold([1.0], [0.6], [0.5, 0.7, 0.8], 1.0), fold([2.0, 3.0, 4.0], [0.3, 0.85, 0.95], [0.5, 0.8, 0.96], 5.0)])
    figures = found["posteriors"]["diffusion"]
    assert figures["log_score"] == pytest.approx(2.5)
    assert figures["error"] == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert figures["coverage"] == pytest.approx([0.25, 0.5, 0.75])
    assert figures["calibrated_coverage"] == pytest.approx([0.25, 0.5, 1.0])
    assert figures["areas"] == pytest.approx([4.0] * 3)
    assert figures["calibrated_areas"] == pytest.approx([8.0] * 3)


def test_every_person_is_tested_once_by_a_posterior_of_others(store: GenotypeStore) -> None:
    folds = [Fold(store, Settings(folds=3), number) for number in range(3)]
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(90))
    for fold in folds:
        assert sorted(np.concatenate([fold.test, fold.validation, fold.train])) == list(range(90))


def test_every_fold_has_calls_and_errors_of_its_own(store: GenotypeStore) -> None:
    folds = [Fold(store, Settings(folds=3), number) for number in range(2)]
    posterior = PlacePosterior(repeats=1, steps=2, num_clusters=3)
    with pytest.warns(UserWarning, match="few to train"):
        posterior.fit(store)
    for fold in folds:
        fold.posterior = posterior
    first, second, again = (fold._people(np.arange(90), 0.3, False, 0) for fold in (*folds, folds[0]))
    assert (first[0].called != second[0].called).any() and (first[0].called == again[0].called).all()
    assert (first[1] != second[1]).all()
    torch.testing.assert_close(first[1], again[1])


def test_the_command_makes_every_fold_once(
    store: GenotypeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ancestry_missing, "store_of", lambda *_, **__: store)
    call = ["ancestry-missing", *TINY, "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="few to train"):
        main(call)
    assert capsys.readouterr().out.count("people,") >= 3
    main(call)
    assert "CPU seconds" not in capsys.readouterr().out.splitlines()[0]  # nothing is done twice
    record = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert records.markdown_of(record) == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert record["people"] == 90 and len(record["cases"]) == 2 * len(SHARES)
    for case in record["cases"]:
        for figures in case["posteriors"].values():
            assert all(np.isfinite(np.array(value, float)).all() for value in figures.values())
    # With all variants and both alleles, every posterior is the known place with the error of the resolution.
    whole = next(case for case in record["cases"] if case["share"] == 1 and not case["haploid"])
    expected = -1 - np.log(2 * np.pi * 0.01**2)
    for figures in whole["posteriors"].values():
        assert figures["log_score"] == pytest.approx(expected, abs=4 / 90**0.5)
        assert figures["areas"][0] == pytest.approx(2 * np.pi * 0.01**2 * np.log(2), rel=0.2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fold=5"], "did you mean folds"),
        (["folds=2"], "folds: expected an integer of at least 3"),
        (["steps=many"], "steps: expected a value of type int, got 'many'"),
        (["dataset=mnist"], "dataset: expected one of"),
        (["folds=3", "folds=4"], "folds: expected one value"),
    ],
)
def test_settings_that_cannot_be_are_named(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        Settings(**read(Settings, overrides, "ancestry-missing"))
    assert words in str(error.value)


def test_options_of_other_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--seeds: expected no such option for ancestry-missing"):
        main(["ancestry-missing", "--seeds", "3", "--runs", str(tmp_path)])
