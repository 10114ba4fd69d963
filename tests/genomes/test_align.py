"""Tests of the alignment of variants: swapped alleles and other strands."""

import numpy as np
import pytest

from ddvi_fast.genomes.align import MatchReport, align
from ddvi_fast.genomes.tables import VariantTable


def table(*rows):
    return VariantTable.from_rows([(chromosome, position, ".", counted, other) for chromosome, position, counted, other in rows])


@pytest.mark.parametrize(
    "have, want, source, swapped, word",
    [
        ("AC", "AC", 0, False, "as they are"),
        ("ac", "AC", 0, False, "as they are"),
        ("CA", "AC", 0, True, "alleles swapped"),
        ("TG", "AC", 0, False, "other strand"),
        ("GT", "AC", 0, True, "other strand, alleles swapped"),
        ("AG", "AC", -1, False, "other alleles"),
        # An allele that a file does not know fits any: PLINK's 0, EIGENSTRAT's X, N, and a point.
        ("0C", "AC", 0, False, "as they are"),
        ("C0", "AC", 0, True, "alleles swapped"),
        (".G", "AC", 0, False, "other strand"),
        ("GX", "AC", 0, True, "other strand, alleles swapped"),
        ("AN", "AC", 0, False, "as they are"),
        ("AC", "0C", 0, False, "as they are"),
        ("C0", "0C", 0, True, "alleles swapped"),
        ("00", "AC", -1, False, "other alleles"),
        ("G0", "C0", 0, False, "other strand"),
        # msprime's alleles are digits.
        ("10", "10", 0, False, "as they are"),
        ("01", "10", 0, True, "alleles swapped"),
    ],
)
def test_each_case(have, want, source, swapped, word):
    found = align(table(("1", 5, *have)), table(("1", 5, *want)))
    assert found.source.tolist() == [source] and found.swapped.tolist() == [swapped]
    (name,) = found.counts
    assert name.startswith(word)


PALINDROMES = {
    # Counted and other allele here and there; swapped under keep, None if left out, under drop and by frequency.
    "same, same rarer": ("AT", "AT", 0.1, 0.2, (False, None, False)),
    "same, other rarer": ("AT", "AT", 0.9, 0.2, (False, None, True)),
    "swapped, same rarer": ("TA", "AT", 0.9, 0.2, (True, None, True)),
    "swapped, other strand": ("GC", "CG", 0.1, 0.2, (True, None, False)),
    "near a half there": ("AT", "AT", 0.45, 0.2, (False, None, None)),
    "near a half here": ("AT", "AT", 0.1, 0.55, (False, None, None)),
    "one allele known": ("0T", "AT", 0.1, 0.2, (False, None, False)),
}


@pytest.mark.parametrize("name", PALINDROMES)
def test_palindromes_follow_the_policy(name):
    have, want, theirs, ours, expected = PALINDROMES[name]
    counts = np.array([[round(100 * (1 - theirs)), 0, round(100 * theirs), 7]])
    for policy, swapped in zip(("keep", "drop", "frequency"), expected, strict=True):
        found = align(table(("1", 5, *have)), table(("1", 5, *want)), palindromes=policy, have_counts=counts, want_frequency=np.array([ours]))
        assert found.matched.tolist() == [swapped is not None] and found.swapped.tolist() == [bool(swapped)], policy
    few = align(table(("1", 5, *have)), table(("1", 5, *want)), palindromes="frequency", have_counts=counts // 10, want_frequency=np.array([ours]))
    assert not few.matched.any(), "ten people do not tell a frequency"


def test_the_strand_of_palindromes_is_that_of_the_others():
    want = table(*(("1", 10 * j + 10, "A", "C") for j in range(20)), ("1", 500, "A", "T"), ("1", 510, "A", "T"))
    same = table(*(("1", 10 * j + 10, "CA"[j % 2], "AC"[j % 2]) for j in range(20)), ("1", 500, "T", "A"), ("1", 510, "A", "T"))
    mixed = table(*(("1", 10 * j + 10, "TA"[j % 2], "GC"[j % 2]) for j in range(20)), ("1", 500, "T", "A"), ("1", 510, "A", "T"))
    assert align(same, want).swapped.tolist()[-2:] == [True, False] and align(same, want).matched.all()
    assert align(mixed, want).matched.tolist() == [True] * 20 + [False] * 2
    (left,) = [count for word, count in align(mixed, want).counts.items() if word.startswith("A/T or C/G")]
    assert left == 2


def named(*rows):
    return VariantTable.from_rows(list(rows))


def shifted(variants, by):
    return VariantTable(variants.chromosome, variants.position + by, variants.name, variants.counted, variants.other)


def test_identifiers_match_variants_of_another_genome_build():
    want = named(*(("1", 1000 * j + 1000, f"rs{j}", "A", "C") for j in range(30)), ("1", 40_000, ".", "A", "C"))
    have = shifted(want, 1000)  # so that each position is that of another variant
    found = align(have, want)
    assert found.source.tolist() == [*range(30), -1] and found.builds_differ and found.keys == {"identifier": 30}
    assert "30 by identifier" in found.report() and "another genome build" in found.report()


def test_identifiers_that_are_positions_identify_nothing():
    want = named(*(("1", 100 * j + 100, f"1:{100 * j + 100}:C:A", "A", "C") for j in range(30)))
    have = VariantTable(want.chromosome, want.position + 50, want.name, want.counted, want.other)
    assert not align(have, want).matched.any()
    assert align(want, want).keys == {"position": 30}


def test_numbered_identifiers_do_not_overrule_positions():
    want = named(*(("1", 100 * j + 100, f"snp{j}", "A", "C") for j in range(30)))
    have = named(*(("1", 100 * j + 100, f"snp{29 - j}", "A", "C") for j in range(30)))
    found = align(have, want)
    assert found.source.tolist() == list(range(30)) and not found.builds_differ and found.keys == {"position": 30}


def test_one_build_uses_positions_and_identifiers():
    want = named(("1", 100, "rs1", "A", "C"), ("1", 200, "rs2", "A", "C"), ("1", 300, "rs3", "A", "C"), ("2", 400, "rs4", "A", "C"))
    have = named(("1", 100, "rs1", "A", "C"), ("1", 200, "other", "A", "C"), ("0", 0, "rs3", "A", "C"), ("3", 400, "rs4", "A", "C"))
    found = align(have, want)
    assert found.source.tolist() == [0, 1, 2, -1] and found.keys == {"identifier and position": 1, "position": 1, "identifier": 1}


def test_an_unknown_position_is_none():
    nowhere = [("0", 0, f"v{j}", "A", "C") for j in range(3)]
    assert not align(named(*nowhere), named(("0", 0, "w", "A", "C"), ("1", 0, "x", "A", "C"))).matched.any()
    assert align(named(*nowhere), named(*reversed(nowhere))).source.tolist() == [2, 1, 0]


@pytest.mark.parametrize("spelling", ["chr7", "chr07", "07", "NC_000007.13", "Chr7"])
def test_spellings_of_chromosomes(spelling):
    assert align(table((spelling, 5, "A", "C")), table(("7", 5, "A", "C"))).matched.all()


def test_the_pseudoautosomal_region_is_on_x():
    assert align(table(("PAR1", 5, "A", "C"), ("25", 9, "A", "C")), table(("X", 5, "A", "C"), ("X", 9, "A", "C"))).matched.all()


def test_weights_are_told_warned_of_and_refused(one_line):
    want = named(*(("1", 100 * j + 100, f"rs{j}", "A", "C") for j in range(100)))
    weights = np.vstack((np.ones(100), np.arange(100) >= 90)).astype(float)
    for count, warned in ((100, False), (95, True), (60, True)):
        with pytest.warns(MatchReport) as caught:
            align(want.take(np.arange(count)), want).tell(weights)
        assert f"{count} of 100 variants" in str(caught[0].message) and ("uncertain" in str(caught[0].message)) == warned
    text = one_line(lambda: align(want.take(np.arange(45)), want).tell(weights))
    assert "45 of 100 variants" in text and "40.9% of the weight" in text
    assert "genome build?" in one_line(lambda: align(shifted(table(("1", 5, "A", "C")), 1), table(("1", 5, "A", "C"))).tell())


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
