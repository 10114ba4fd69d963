"""Tests of kinship against plink2's table of tests/genomes/plink2, which plink2 v2.00a3.5 made from `simulated()`, and against its definition."""

import re
from pathlib import Path

import numpy as np
import pytest

from ddvi_fast import cli
from ddvi_fast.genomes import kinship as module
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.kinship import relatives
from tests.genomes.files import Genotypes, simulated, write_eigenstrat, write_vcf

TABLE = Path(__file__).parent / "plink2" / "simulated.kin0"


@pytest.mark.parametrize("samples, variants", [(512, 8192), (10, 24)])
def test_kinship_is_that_of_plink2(tmp_path, monkeypatch, samples, variants):
    monkeypatch.setattr(module, "_SAMPLES", samples)
    monkeypatch.setattr(module, "_VARIANTS", variants)
    rows = [line.split() for line in TABLE.read_text().splitlines()[1:]]
    store = import_genotypes(write_vcf(simulated(), tmp_path / "a.vcf"), tmp_path / "store")
    found = relatives(store, least=-0.999)
    expected = {(*sorted(row[:2]), row[2], row[3]) for row in rows if float(row[3]) >= -0.999}
    pairs = zip(store.samples.name[found.first], store.samples.name[found.second], found.opposite, found.kinship, strict=True)
    assert {(one, other, f"{share:.6g}", f"{kinship:.6g}") for one, other, share, kinship in pairs} == expected and len(expected) > 500
    assert (np.diff(found.kinship) <= 0).all()


@pytest.fixture
def family(tmp_path):
    """Two unrelated people, their two children, a duplicate of the first, and nine others, with variants on X that say nothing."""
    generator = np.random.default_rng(0)
    frequency = generator.uniform(0.1, 0.9, 3000)
    haplotypes = generator.random((11, 2, 3000)) < frequency

    def child(one, other):
        places = generator.integers(0, 2, (2, 3000))
        return np.stack([haplotypes[parent][places[k], np.arange(3000)] for k, parent in enumerate((one, other))])

    people = [*haplotypes[:2], child(0, 1), child(0, 1), haplotypes[0], *haplotypes[2:]]
    codes = np.array([each.sum(0) for each in people], np.uint8)
    codes[:, -900:] = 0
    variants = [("X" if j >= 2100 else str(j // 100 + 1), 10 + j, f"rs{j}", "A", "C") for j in range(3000)]
    return import_genotypes(write_eigenstrat(Genotypes(codes, variants=variants), tmp_path / "file"), tmp_path / "family")


def test_degrees_of_a_family(family):
    found = relatives(family)
    pairs = dict(zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.degrees(), strict=True))
    first = {(i, j): "first degree" for i, j in ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4))}
    assert pairs == {(0, 4): "duplicate or twin", **first}
    assert found.opposite[[place for place, pair in enumerate(pairs) if pair != (2, 3)]].max() == 0  # parents share an allele everywhere
    assert found.to_remove().tolist() == [2, 3, 4] and len(relatives(family, 0.45)) == 1


def test_the_command_lists_whom_to_remove(family, tmp_path, capsys, one_line):
    table, names = tmp_path / "pairs.tsv", tmp_path / "related.txt"
    assert cli.main(["data", "relatives", str(family.path), "--out", str(table), "--list", str(names)]) == 0
    told = capsys.readouterr().out
    assert re.search("first degree +7 pairs", told) and "3 people" in told
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == ["sample1", "sample2", "kinship", "opposite", "degree"] and len(lines) == 9
    assert lines[1] == ["P000", "P004", "0.5000", "0.0000", "duplicate or twin"]
    assert names.read_text() == "#IID\nP002\nP003\nP004\n"
    left = import_genotypes(tmp_path / "file.geno", tmp_path / "left", filters=Filters(remove=names))
    assert len(left) == 11 and not len(relatives(left))
    assert "--overwrite" in one_line(lambda: module.write(relatives(left), left, table, None))


def test_bad_requests_are_one_line(tmp_path, one_line):
    alien = Genotypes(simulated(5, 8).codes, variants=[("X", j, f"v{j}", "A", "C") for j in range(8)])
    store = import_genotypes(write_eigenstrat(alien, tmp_path / "file"), tmp_path / "store")
    assert "autosomal variants" in one_line(lambda: relatives(store))
    assert "least" in one_line(lambda: relatives(store, 0.6))
    constant = store_from_codes(np.zeros((3, 5), int), tmp_path / "constant")
    assert not len(relatives(constant)) and not len(relatives(constant).to_remove())  # without a heterozygote nothing is known
