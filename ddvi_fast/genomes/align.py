"""Variants of one file in terms of another's: swapped alleles, other strands, another order.

Variants are matched by chromosome and position. Where the same two alleles are counted the other way round, or are read from the other
strand, genotypes can still be told; where the two alleles are each other's complement (A/T, C/G), a swap and a change of strand look
alike, so only the identical pair is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.tables import VariantTable

_COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")
_ABSENT, _SAME, _SWAPPED, _STRAND, _SWAPPED_STRAND, _AMBIGUOUS, _OTHER = range(7)
_SWAPS = np.array([2, 1, 0, MISSING], np.uint8)  # what each code becomes where the other allele is counted
_WORDS = {
    _ABSENT: "absent",
    _SAME: "as they are",
    _SWAPPED: "alleles swapped",
    _STRAND: "other strand",
    _SWAPPED_STRAND: "other strand, alleles swapped",
    _AMBIGUOUS: "A/T or C/G, the other way round: strand or swap, left out",
    _OTHER: "other alleles, left out",
}


@dataclass(frozen=True)
class Alignment:
    """How to read one file's codes as another's.

    Args:
        source: for each variant wanted, its index in the file at hand; -1 where it has none that can be used.
        swapped: whether its copies are counted the other way round, bool.
        counts: how many variants wanted fall under each case, by its name.
    """

    source: np.ndarray
    swapped: np.ndarray
    counts: dict[str, int]

    def apply(self, codes: np.ndarray, first: int = 0) -> np.ndarray:
        """Codes of the variants wanted from `first` on, from `codes` uint8 [N, count] of the file's variants ``source[first:]``.

        What stands in columns whose source is -1 does not matter: they become missing.
        """
        part = slice(first, first + codes.shape[1])
        return np.where(self.source[part] < 0, MISSING, np.where(self.swapped[part], _SWAPS[codes], codes)).astype(np.uint8)


def align(have: VariantTable, want: VariantTable) -> Alignment:
    """Match the variants `want` with those of a file, `have`.

    Where the file has several variants at one position, the first with the best match is taken.

    Example:
        >>> table = VariantTable.from_rows([("1", 5, ".", "A", "G"), ("1", 9, ".", "C", "T")])
        >>> flipped = VariantTable.from_rows([("chr1", 9, ".", "A", "G"), ("1", 5, ".", "G", "A")])
        >>> found = align(flipped, table)
        >>> found.source.tolist(), found.swapped.tolist(), found.counts
        ([1, 0], [True, True], {'alleles swapped': 1, 'other strand, alleles swapped': 1})
    """
    places: dict[tuple[str, int], list[int]] = {}
    for place, key in enumerate(zip(have.chromosome, have.position.tolist(), strict=True)):
        places.setdefault(key, []).append(place)
    source, kinds = np.full(len(want), -1), np.zeros(len(want), np.int8)
    columns = zip(want.chromosome, want.position.tolist(), want.counted, want.other, strict=True)
    for number, (chromosome, position, counted, other) in enumerate(columns):
        candidates = places.get((chromosome, position), [])
        kind, place = min(((_match(have.counted[i], have.other[i], counted, other), i) for i in candidates), default=(_ABSENT, -1))
        kinds[number] = kind
        source[number] = place if kind not in (_ABSENT, _AMBIGUOUS, _OTHER) else -1
    counts = {_WORDS[kind]: int((kinds == kind).sum()) for kind in _WORDS if (kinds == kind).any()}
    return Alignment(source, np.isin(kinds, (_SWAPPED, _SWAPPED_STRAND)), counts)


def _match(counted: str, other: str, wanted: str, wanted_other: str) -> int:
    """How a pair of alleles stands to the pair wanted; smaller is better."""
    if (counted, other) == (wanted, wanted_other):
        return _SAME
    complement = (counted.translate(_COMPLEMENT)[::-1], other.translate(_COMPLEMENT)[::-1])
    swapped = (other, counted) == (wanted, wanted_other)
    if swapped and complement == (other, counted):
        return _AMBIGUOUS
    if swapped:
        return _SWAPPED
    if complement == (wanted, wanted_other):
        return _STRAND
    return _SWAPPED_STRAND if complement[::-1] == (wanted, wanted_other) else _OTHER
