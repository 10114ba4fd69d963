"""Tests of the exact test against all its terms in exact numbers, and against plink 1.9's table of tests/genomes/plink2."""

from fractions import Fraction
from math import factorial
from pathlib import Path

import numpy as np
import pytest

from ddvi_fast.genomes import hardy_weinberg
from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.hardy_weinberg import exact_test, expected_heterozygotes
from tests.genomes.files import Genotypes, simulated, write_eigenstrat, write_vcf

TABLE = Path(__file__).parent / "plink2" / "simulated.hwe"


def exact(first, heterozygous, second):
    """P-value and mean number of heterozygotes."""
    called, rare = first + heterozygous + second, 2 * min(first, second) + heterozygous
    weight = {}
    for number in range(rare % 2, rare + 1, 2):
        pairs = (rare - number) // 2
        weight[number] = Fraction(2**number, factorial(number) * factorial(pairs) * factorial(called - number - pairs))
    total = sum(weight.values())
    value = sum(each for each in weight.values() if each <= weight[heterozygous]) / total
    return float(value), float(sum(number * each for number, each in weight.items()) / total)


def test_p_values_and_means_are_those_of_all_terms():
    counts = np.array([[i, j, 11 - i - j if k else 40, k] for i in range(12) for j in range(12 - i) for k in (0, 7)])
    expected = np.array([exact(*row[:3]) for row in counts.tolist()])
    np.testing.assert_allclose(exact_test(counts), expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(expected_heterozygotes(counts), expected[:, 1], rtol=1e-9)


def test_many_samples_need_few_terms(monkeypatch):
    rows = [[300, 400, 300, 0], [450, 100, 450, 0], [980, 20, 0, 3], [310, 400, 290, 5], [240, 520, 240, 0], [0, 1000, 0, 0], [0, 0, 0, 1000]]
    whole = exact_test(np.array(rows))
    np.testing.assert_allclose(whole, [exact(*row[:3])[0] for row in rows], rtol=1e-8, atol=1e-300)
    monkeypatch.setattr(hardy_weinberg, "_REACH", 8.0)
    np.testing.assert_allclose(exact_test(np.array(rows)), whole, rtol=1e-8, atol=1e-60)


def test_p_values_are_those_of_plink(tmp_path):
    rows = [line.split() for line in TABLE.read_text().splitlines()[1:]]
    store = import_genotypes(write_vcf(simulated(), tmp_path / "a.vcf"), tmp_path / "store")
    known = {row[1]: float(row[-1]) for row in rows if row[0] not in ("23", "X")}
    found = dict(zip(store.variants.name, exact_test(store.counts), strict=True))
    assert len(known) > 70 and all(found[name] == pytest.approx(value, rel=1e-3) for name, value in known.items())


def test_the_filter_leaves_out_autosomal_variants_alone(tmp_path):
    codes = np.repeat(np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [2, 2, 1, 1, 2], [2, 1, 1, 1, 2]], np.uint8), 5, axis=0)
    variants = [(chromosome, 10, f"rs{j}", "A", "C") for j, chromosome in enumerate(("1", "2", "3", "X", "X"))]
    path = write_eigenstrat(Genotypes(codes, variants=variants), tmp_path / "file")
    # No heterozygotes, as many as expected, none but heterozygotes; on X neither counts.
    for options, names in (({}, ["rs1", "rs3", "rs4"]), ({"keep_few_heterozygotes": True}, ["rs0", "rs1", "rs3", "rs4"])):
        store = import_genotypes(path, tmp_path / "store", filters=Filters(hardy_weinberg=1e-3, **options), overwrite=True)
        assert list(store.variants.name) == names
    assert [step["reason"] for step in store.imported["removed"]] == ["Hardy-Weinberg p-value below 0.001"]
