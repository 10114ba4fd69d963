"""Tests of the alignment of variants: swapped alleles and other strands."""

import numpy as np
import pytest

from ddvi_fast.genomes.align import align
from ddvi_fast.genomes.tables import VariantTable


def table(*rows):
    return VariantTable.from_rows([(chromosome, position, ".", counted, other) for chromosome, position, counted, other in rows])


@pytest.mark.parametrize(
    "have, want, source, swapped, word",
    [
        ("AC", "AC", 0, False, "as they are"),
        ("CA", "AC", 0, True, "alleles swapped"),
        ("TG", "AC", 0, False, "other strand"),
        ("GT", "AC", 0, True, "other strand, alleles swapped"),
        ("AT", "AT", 0, False, "as they are"),
        ("TA", "AT", -1, False, "A/T or C/G"),
        ("GC", "CG", -1, False, "A/T or C/G"),
        ("AG", "AC", -1, False, "other alleles"),
    ],
)
def test_each_case(have, want, source, swapped, word):
    found = align(table(("1", 5, *have)), table(("1", 5, *want)))
    assert found.source.tolist() == [source] and found.swapped.tolist() == [swapped]
    (name,) = found.counts
    assert name.startswith(word)


def test_the_best_of_several_at_one_position_is_taken():
    have = table(("1", 5, "A", "G"), ("1", 5, "C", "A"), ("1", 5, "A", "C"), ("2", 5, "A", "C"))
    assert align(have, table(("1", 5, "A", "C"))).source.tolist() == [2]
    assert align(have, table(("1", 6, "A", "C"))).counts == {"absent": 1}


def test_insertions_are_complemented_backwards():
    found = align(table(("1", 5, "ACC", "A")), table(("1", 5, "GGT", "T")))
    assert found.counts == {"other strand": 1}


def test_codes_are_turned():
    found = align(table(("1", 1, "A", "C"), ("1", 2, "C", "A")), table(("1", 1, "A", "C"), ("1", 2, "A", "C"), ("1", 3, "A", "C")))
    codes = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]], np.uint8)
    assert found.apply(codes).tolist() == [[0, 2, 3], [1, 1, 3], [2, 0, 3], [3, 3, 3]]
    assert found.apply(codes[:, :2], first=1).tolist() == [[2, 3], [1, 3], [0, 3], [3, 3]]
