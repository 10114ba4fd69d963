"""Tests of the merge of stores: common variants, alleles and strands, names and labels."""

import numpy as np
import pytest

from ddvi_fast import cli
from ddvi_fast.genomes.align import MatchReport
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.merge import merge_stores
from ddvi_fast.genomes.store import GenotypeStore
from tests.genomes.files import Genotypes, write_eigenstrat, write_plink
from tests.genomes.test_cohorts import rewritten
from tests.genomes.test_pca import ancestry


@pytest.fixture
def cohort():
    codes = ancestry(60, 150)
    return Genotypes(codes, variants=[(str(j // 40 + 1), 10 * j + 10, f"rs{j}", "AC"[j % 2], "CA"[j % 2]) for j in range(150)])


def part(data, people, variants=slice(None)):
    return Genotypes(data.codes[people][:, variants], data.samples[people], data.variants[variants])


def test_a_cohort_in_two_parts_becomes_one(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("ddvi_fast.genomes.formats.sources.BLOCK_CODES", 1000)
    other = rewritten(cohort)
    other.codes = np.where(cohort.codes[:, [int(row[2][2:]) for row in other.variants]] == 3, 3, other.codes)
    stores = [
        import_genotypes(write_eigenstrat(part(cohort, slice(0, 40)), tmp_path / "a"), tmp_path / "first"),
        import_genotypes(write_eigenstrat(part(other, slice(40, 60), slice(20, 150)), tmp_path / "b"), tmp_path / "second"),
    ]
    with pytest.warns(MatchReport, match=r"second: 130 of 150 variants"):
        merged = merge_stores(stores, tmp_path / "merged")
    names = [row[2] for row in other.variants[20:]]
    kept = [number for number, row in enumerate(cohort.variants) if row[2] in names]
    assert np.array_equal(merged.genotypes(), cohort.codes[:, kept]) and list(merged.samples.name) == cohort.samples
    assert list(merged.variants.name) == [cohort.variants[number][2] for number in kept]
    assert merged.samples.labels["cohort"].tolist() == ["first"] * 40 + ["second"] * 20


def test_names_and_labels(tmp_path, capsys):
    for name, labels in (("north", {"population": ["A", "B"]}), ("south", {"note": ["x", "y"]})):
        store_from_codes(np.array([[0, 1, 2], [2, 1, 3]]), tmp_path / name, labels=labels)
    with pytest.warns(MatchReport, match="3 of 3"):
        assert cli.main(["data", "merge", str(tmp_path / "north"), str(tmp_path / "south"), "--out", str(tmp_path / "out")]) == 0
    merged = GenotypeStore(tmp_path / "out")
    assert "4 samples, 3 variants" in capsys.readouterr().out
    assert list(merged.samples.name) == ["north:sample0", "north:sample1", "south:sample0", "south:sample1"]
    assert {name: column.tolist() for name, column in merged.samples.labels.items()} == {
        "population": ["A", "B", "", ""], "note": ["", "", "x", "y"], "cohort": ["north", "north", "south", "south"],
    }  # fmt: skip


def test_stores_with_little_in_common_are_refused(tmp_path, one_line):
    first, second = store_from_codes(np.zeros((3, 10)), tmp_path / "a"), store_from_codes(np.zeros((3, 4)), tmp_path / "b")
    assert "4 of 10 variants" in one_line(lambda: merge_stores([first, second], tmp_path / "out"))
    assert "at least two" in one_line(lambda: merge_stores([first], tmp_path / "out"))
    assert "different names" in one_line(lambda: merge_stores([first, first], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_merge_has_the_species_of_its_stores(tmp_path, one_line):
    data = Genotypes(ancestry(20, 12, missing=0), variants=[(str(20 + j), 7, f"rs{j}", "A", "C") for j in range(12)])
    path = write_plink(data, tmp_path / "file")
    cows = [import_genotypes(path, tmp_path / name, num_autosomes=29) for name in ("one", "other")]
    with pytest.warns(MatchReport):
        merged = merge_stores(cows, tmp_path / "merged", filters=Filters(autosomes=True))
    assert merged.num_autosomes == 29 and list(merged.variants.chromosome) == [str(20 + j) for j in range(10)]
    people = import_genotypes(path, tmp_path / "people")
    assert "one number of autosomes" in one_line(lambda: merge_stores([cows[0], people], tmp_path / "mixed"))
