"""Matching of the variants of two files: by identifier, position and alleles, with swapped alleles, other strands and unknown alleles.

- A variant is looked up by its identifier and by its position. An identifier that is itself a position (``1:2345:A:C``), and position 0,
  identify nothing. Where most identifiers in common stand at other positions, the files belong to different genome builds, and only
  identifiers count; where positions agree for more variants than identifiers do, only positions count.
- Genotypes are converted where the other of the two alleles is counted, or the alleles are read from the other strand. An allele that a
  file does not know (``0``, ``.``, ``X``, ``N``) fits any, so that one known allele suffices.
- Where the two alleles are complements of each other (A/T, C/G), a swap cannot be distinguished from a change of strand: a policy decides.
"""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import dataclass

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packed import frequencies
from ddvi_fast.data.packing import MISSING, PER_BYTE
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import UNKNOWN_CHROMOSOMES, VariantTable

PALINDROMES = ("auto", "keep", "drop", "frequency")
LEAST_SHARE, USUAL_SHARE = 0.5, 0.9  # of the weight of the wanted variants: below the first is refused, below the second a warning

_COMPLEMENT = str.maketrans("ACGT", "TGCA")
_UNKNOWN = frozenset(("0", ".", "X", "N", ""))
_PLACE = re.compile(r"^(chr)?[0-9XYM]{1,2}T?[:_-]\d+([:_-].*)?$", re.IGNORECASE)
_SAME, _SWAPPED, _STRAND, _SWAPPED_STRAND, _PALINDROME, _PALINDROME_SWAPPED, _OTHER, _ABSENT = range(8)
_BOTH, _POSITION, _IDENTIFIER = range(3)  # by what a pair was found, the better first
_SWAPS = np.array([2, 1, 0, MISSING], np.uint8)  # codes where the other allele is counted
_WORDS = {
    _SAME: "as they are",
    _SWAPPED: "alleles swapped",
    _STRAND: "other strand",
    _SWAPPED_STRAND: "other strand, alleles swapped",
    _PALINDROME: "A/T or C/G, left out",
    _OTHER: "other alleles, left out",
    _ABSENT: "absent",
}
_KEYS = {_BOTH: "identifier and position", _POSITION: "position", _IDENTIFIER: "identifier"}
_LEAST_EVIDENCE, _MOST_FLIPPED = 10, 0.01  # variants, and the share of them on the other strand, for files on the same strand
_MANY = 100  # variants among which there are homozygotes of both alleles
VARIANT_SITES = "a file of variant sites alone, in which absent calls are homozygous for the reference"
_LEAST_CALLS, _CLEAR = 20, 0.1  # calls, and distance of a frequency from a half, that tell which of two alleles is the rarer


class MatchReport(UserWarning):
    """Report of a match of variants: how many were found, by what, and how they were converted."""


@dataclass(frozen=True)
class Alignment:
    """Map from the codes of one file to the variants of another.

    Args:
        source: Index in the file of each wanted variant, int [M]; -1 where the file has none that can be used.
        swapped: Whether the file counts the other allele, bool [M].
        counts: Number of wanted variants in each case, by the name of the case.
        keys: Number of matched variants by what identified them: ``"identifier"``, ``"position"`` or ``"identifier and position"``.
        builds_differ: Whether the positions of the two files belong to different genome builds.
    """

    source: np.ndarray
    swapped: np.ndarray
    counts: dict[str, int]
    keys: dict[str, int]
    builds_differ: bool = False

    def apply(self, codes: np.ndarray, first: int = 0) -> np.ndarray:
        """Codes of the wanted variants from `first` on, given `codes` uint8 [N, count] of the variants ``source[first:]`` of the file.

        Columns whose source is -1 become missing calls, whatever they contain.
        """
        part = slice(first, first + codes.shape[1])
        return np.where(self.source[part] < 0, MISSING, np.where(self.swapped[part], _SWAPS[codes], codes)).astype(np.uint8)

    @property
    def matched(self) -> np.ndarray:
        """Mask of the wanted variants that were found, bool [M]."""
        return self.source >= 0

    def shares(self, weights: np.ndarray | None = None) -> tuple[float, float]:
        """Share of the matched variants in the sum of all `weights` [k, M], and the smallest one in the sum of a row (default equal weights)."""
        rows = np.ones((1, len(self.source))) if weights is None else np.atleast_2d(weights).astype(np.float64)
        found, sums = rows[:, self.matched].sum(1), rows.sum(1)
        return float(found.sum() / sums.sum()), float((found[sums > 0] / sums[sums > 0]).min())

    def report(self, weights: np.ndarray | None = None) -> str:
        """The match in one line."""
        found = int(self.matched.sum())
        by = ", ".join(f"{count:,} by {key}" for key, count in self.keys.items()) or "none by identifier or position"
        build = " (positions of another genome build, not used)" if self.builds_differ else ""
        cases = ", ".join(f"{count:,} {word}" for word, count in self.counts.items())
        share = "" if weights is None else f"; {self.shares(weights)[0]:.1%} of the weight"
        return f"{found:,} of {len(self.source):,} variants matched, {by}{build}: {cases}{share}"

    def tell(self, weights: np.ndarray | None = None, argument: str = "store") -> None:
        """Show the report as a warning of class `MatchReport`.

        Raises:
            InputError: The matched variants have less than half of the weight.
        """
        (share, least), report = self.shares(weights), self.report(weights)
        hint = "" if any("identifier" in key for key in self.keys) else "no identifiers in common: positions of another genome build?"
        wanted = f"at least {LEAST_SHARE:.0%} of the weight of the variants that were fitted"
        _checks.require(share >= LEAST_SHARE, argument, wanted, report, hint)
        part = "" if weights is None else " on some component"
        warning = f"; only {least:.1%}{part}, so that positions are uncertain" if least < USUAL_SHARE else ""
        warnings.warn(f"{argument}: {report}{warning}", MatchReport, stacklevel=_checks.outside())


def identity(count: int) -> Alignment:
    """Alignment of `count` variants with themselves."""
    cases, keys = {_WORDS[_SAME]: count}, {_KEYS[_BOTH]: count}
    return Alignment(np.arange(count), np.zeros(count, bool), cases, keys)


def same_variants(one: VariantTable, other: VariantTable) -> bool:
    """Whether two tables have the same variants in the same order, whatever their identifiers."""
    names = ("chromosome", "position", "counted", "other")
    return one is other or all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def matched_codes(store: GenotypeStore, rows: np.ndarray, found: Alignment, first: int, count: int) -> np.ndarray:
    """Codes uint8 [R, count] of the samples `rows` at `count` wanted variants from `first` on."""
    places = np.maximum(found.source[first : first + count], 0)
    codes = store.packed[np.ix_(rows, places // PER_BYTE)] >> (2 * (places % PER_BYTE)).astype(np.uint8) & MISSING
    return found.apply(codes, first)


def variant_sites_alone(counts: np.ndarray) -> bool:
    """Whether nobody is homozygous for the other allele anywhere: absent sites are then no missing calls, but such homozygotes.

    So are files that list the sites alone at which one person differs from the reference, and their merge.

    Args:
        counts: Number of samples with code 0, 1, 2 and 3 at each variant, int [M, 4].
    """
    return len(counts) >= _MANY and not counts[:, 0].any() and bool(counts[:, 1:3].any())


def require_whole(store: GenotypeStore) -> None:
    """Raise `InputError` where a store has `variant_sites_alone`."""
    hint = "call all people together, or write their reference calls too (bcftools merge --missing-to-ref, GATK GenotypeGVCFs)"
    _checks.require(not variant_sites_alone(store.counts), "store", "homozygotes of both alleles", VARIANT_SITES, hint)


def align(
    have: VariantTable,
    want: VariantTable,
    *,
    palindromes: str = "auto",
    have_counts: np.ndarray | None = None,
    want_frequency: np.ndarray | None = None,
) -> Alignment:
    """Match the wanted variants `want` with the variants `have` of a file.

    Where the file has several variants with one identifier or position, the first one with the best match is used.

    Args:
        have: Variants of the file.
        want: Wanted variants.
        palindromes: Treatment of variants with the alleles A/T or C/G: ``"keep"`` (both files have the same strand), ``"drop"``,
            ``"frequency"`` (the strand on which the same allele is the rarer; left out where a frequency is near a half, or rests on few
            calls), or ``"auto"`` (default): ``"keep"`` if the other variants show that the strands are the same, else ``"frequency"``.
        have_counts: Counts of codes of the file, int [.., 4] (see `GenotypeStore.counts`), for ``"frequency"`` (default unknown).
        want_frequency: Frequency of the counted allele of the wanted variants, [M], for ``"frequency"`` (default unknown).

    Example:
        >>> table = VariantTable.from_rows([("1", 5, "rs1", "A", "G"), ("1", 9, "rs2", "C", "T")])
        >>> flipped = VariantTable.from_rows([("chr1", 109, "rs2", "A", "G"), ("1", 105, "rs1", "G", "0")])
        >>> found = align(flipped, table)
        >>> found.source.tolist(), found.swapped.tolist(), found.builds_differ
        ([1, 0], [True, True], True)
        >>> found.report()
        '2 of 2 variants matched, 2 by identifier (positions of another genome build, not used): 1 alleles swapped, 1 other strand, alleles swapped'
    """
    _checks.choice(palindromes, PALINDROMES, "palindromes")
    pairs, builds_differ = _pairs(have, want)
    number, place, key, kind = _best(pairs)
    swapped = np.isin(kind, (_SWAPPED, _SWAPPED_STRAND, _PALINDROME_SWAPPED))
    doubtful = np.isin(kind, (_PALINDROME, _PALINDROME_SWAPPED))
    keep = kind < _OTHER
    keep[doubtful], swapped[doubtful] = _decide(palindromes, kind, doubtful, number, place, swapped, have_counts, want_frequency)
    cases = np.full(len(want), _ABSENT)
    cases[number] = np.where(doubtful, np.where(keep, np.where(swapped, _SWAPPED, _SAME), _PALINDROME), kind)
    source, swaps = np.full(len(want), -1), np.zeros(len(want), bool)
    source[number[keep]], swaps[number[keep]] = place[keep], swapped[keep]
    counts = {_WORDS[each]: int((cases == each).sum()) for each in _WORDS if (cases == each).any()}
    keys = {_KEYS[each]: int((key[keep] == each).sum()) for each in _KEYS if (key[keep] == each).any()}
    return Alignment(source, swaps, counts, keys, builds_differ)


def _pairs(have: VariantTable, want: VariantTable) -> tuple[np.ndarray, bool]:
    """Candidates, int [.., 4]: wanted variant, variant of the file, by what it was found, case of its alleles; and whether builds differ."""
    named, located = _by_name(have, want), _by_place(have, want)
    placed = np.array([(have.position[h], want.position[w]) for w, h in named], np.int64).reshape(-1, 2)
    kinds = [
        np.array([_match(have.counted[h], have.other[h], want.counted[w], want.other[w]) for w, h in each], np.int64) for each in (named, located)
    ]
    same, known = placed[:, 0] == placed[:, 1], (placed > 0).all(1)
    elsewhere = int((known & ~same & (kinds[0] < _OTHER)).sum())
    disagree = elsewhere > int((known & same).sum())
    differ = disagree and elsewhere > int((kinds[1] < _OTHER).sum())
    keys = np.full(len(named), _IDENTIFIER) if differ else np.where(same & known, _BOTH, _IDENTIFIER)
    by_name = np.column_stack((np.array(named, np.int64).reshape(-1, 2), keys, kinds[0]))
    by_place = np.column_stack((np.array(located, np.int64).reshape(-1, 2), np.full(len(located), _POSITION), kinds[1]))
    if differ:
        return by_name, True
    # A variant at the same position is found twice if its identifier agrees, too: the better key stands first in the order.
    return (np.concatenate((by_name[same & known], by_place)) if disagree else np.concatenate((by_name, by_place))), False


def _by_name(have: VariantTable, want: VariantTable) -> list[tuple[int, int]]:
    """Pairs with one identifier in common, whose chromosomes do not contradict each other."""
    places: dict[str, list[int]] = {each: [] for name in want.name for each in _identifiers(name)}
    for place, name in enumerate(have.name):
        for each in _identifiers(name):
            if each in places:
                places[each].append(place)
    found = dict.fromkeys((number, place) for number, name in enumerate(want.name) for each in _identifiers(name) for place in places[each])
    return [(number, place) for number, place in found if _one_chromosome(have.chromosome[place], want.chromosome[number])]


def _identifiers(name: str) -> tuple[str, ...]:
    """Identifiers of a variant, of which merged records of dbSNP have several (``rs1;rs2``), without those that are positions."""
    if ";" not in name:
        return () if _PLACE.match(name) else (name,)
    return tuple(each for each in name.split(";") if each and not _PLACE.match(each))


def _by_place(have: VariantTable, want: VariantTable) -> list[tuple[int, int]]:
    """Pairs with the same chromosome and position."""
    places: dict[tuple[str, int], list[int]] = {key: [] for key in _places(want)}
    for place, key in enumerate(_places(have)):
        if key in places:
            places[key].append(place)
    keys = enumerate(_places(want))
    return [(number, place) for number, key in keys if key[1] > 0 and key[0] not in UNKNOWN_CHROMOSOMES for place in places[key]]


def _places(variants: VariantTable) -> list[tuple[str, int]]:
    names = ("X" if name == "XY" else name for name in variants.chromosome)
    return list(zip(names, variants.position.tolist(), strict=True))


def _one_chromosome(one: str, other: str) -> bool:
    return one == other or one in UNKNOWN_CHROMOSOMES or other in UNKNOWN_CHROMOSOMES or {one, other} == {"X", "XY"}


def _best(pairs: np.ndarray) -> np.ndarray:
    """The best pair of each wanted variant, [4, ..]: one whose alleles fit, by the better key, with the better case, the first."""
    number, place, key, kind = pairs.T
    order = np.lexsort((place, kind, key, kind == _OTHER, number))
    chosen = pairs[order]
    return chosen[np.diff(chosen[:, 0], prepend=-1) != 0].T


def _decide(
    policy: str, kind: np.ndarray, doubtful: np.ndarray, number: np.ndarray, place: np.ndarray, swapped: np.ndarray,
    have_counts: np.ndarray | None, want_frequency: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Whether each palindromic variant is kept, and whether its alleles are swapped."""
    plain, flipped = int(np.isin(kind, (_SAME, _SWAPPED)).sum()), int(np.isin(kind, (_STRAND, _SWAPPED_STRAND)).sum())
    one_strand = plain + flipped >= _LEAST_EVIDENCE and flipped <= _MOST_FLIPPED * (plain + flipped)
    swaps = swapped[doubtful]
    if policy == "keep" or (policy == "auto" and one_strand):
        return np.ones(len(swaps), bool), swaps
    if policy == "drop" or have_counts is None or want_frequency is None:
        return np.zeros(len(swaps), bool), swaps
    counts = have_counts[place[doubtful]]
    theirs, ours = np.nan_to_num(frequencies(counts), nan=0.5), np.asarray(want_frequency)[number[doubtful]]
    clear = (counts[:, :3].sum(1) >= _LEAST_CALLS) & (np.abs(theirs - 0.5) >= _CLEAR) & (np.abs(ours - 0.5) >= _CLEAR)
    return clear, (theirs > 0.5) != (ours > 0.5)


@functools.lru_cache(maxsize=1 << 16)
def _match(counted: str, other: str, wanted: str, wanted_other: str) -> int:
    """Case of a pair of alleles compared with the wanted pair."""
    mine, theirs = (counted.upper(), other.upper()), (wanted.upper(), wanted_other.upper())
    known = theirs if not _UNKNOWN.intersection(theirs) else mine
    turned = tuple(allele if allele in _UNKNOWN else allele.translate(_COMPLEMENT)[::-1] for allele in mine)
    if known[0] == known[1].translate(_COMPLEMENT)[::-1] and known[0] != known[1]:
        return _PALINDROME if _fit(mine, theirs) else _PALINDROME_SWAPPED if _fit(mine[::-1], theirs) else _OTHER
    cases = {_SAME: mine, _SWAPPED: mine[::-1], _STRAND: turned, _SWAPPED_STRAND: turned[::-1]}
    return next((case for case, pair in cases.items() if _fit(pair, theirs)), _OTHER)


def _fit(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two pairs of alleles agree where both are known, in one known allele at least."""
    agree = [a == b for a, b in zip(one, other, strict=True)]
    shared = any(same and a not in _UNKNOWN for same, a in zip(agree, one, strict=True))
    return shared and all(same or bool({a, b} & _UNKNOWN) for same, a, b in zip(agree, one, other, strict=True))
