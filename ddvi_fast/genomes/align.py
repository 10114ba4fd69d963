"""Alignment of the variants of two files: swapped alleles, other strands, another order.

Variants are matched by chromosome and position. Genotypes can be converted where the other of the two alleles is counted, or where the
alleles are read from the other strand. Where the two alleles are complements of each other (A/T, C/G), a swap cannot be distinguished from
a change of strand, so that only the identical pair is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.tables import VariantTable

_COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")
_ABSENT, _SAME, _SWAPPED, _STRAND, _SWAPPED_STRAND, _AMBIGUOUS, _OTHER = range(7)
_SWAPS = np.array([2, 1, 0, MISSING], np.uint8)  # codes where the other allele is counted
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
    """Map from the codes of one file to the variants of another.

    Args:
        source: Index in the file of each wanted variant, int [M]; -1 where the file has none that can be used.
        swapped: Whether the file counts the other allele, bool [M].
        counts: Number of wanted variants in each case, by the name of the case.
    """

    source: np.ndarray
    swapped: np.ndarray
    counts: dict[str, int]

    def apply(self, codes: np.ndarray, first: int = 0) -> np.ndarray:
        """Codes of the wanted variants from `first` on, given `codes` uint8 [N, count] of the variants ``source[first:]`` of the file.

        Columns whose source is -1 become missing calls, whatever they contain.
        """
        part = slice(first, first + codes.shape[1])
        return np.where(self.source[part] < 0, MISSING, np.where(self.swapped[part], _SWAPS[codes], codes)).astype(np.uint8)


def align(have: VariantTable, want: VariantTable) -> Alignment:
    """Match the wanted variants `want` with the variants `have` of a file.

    Where the file has several variants at one position, the first one with the best match is used.

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
    """Case of a pair of alleles compared with the wanted pair; smaller is better."""
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
