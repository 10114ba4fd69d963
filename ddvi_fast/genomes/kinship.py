"""Duplicates and relatives among samples: the kinship coefficient KING-robust (Manichaikul et al. 2010, Bioinformatics 26)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files
from ddvi_fast.data.packing import MISSING, unpack
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import chromosome_set
from ddvi_fast.precision import without_callers_autocast

# Smallest kinship of each degree: powers of 1/2 between the expected values.
DEGREES = {"duplicate or twin": 2**-1.5, "first degree": 2**-2.5, "second degree": 2**-3.5, "third degree": 2**-4.5}
SECOND_DEGREE = DEGREES["second degree"]
_SAMPLES, _VARIANTS = 512, 1 << 13  # of one product


@dataclass(frozen=True)
class Relatives:
    """Pairs of related samples, from the closest on.

    Args:
        first, second: Indices of the samples, int64 [R].
        kinship: Kinship coefficients, float64 [R]: 1/2 for duplicates, 1/4 in the first degree, 0 for unrelated samples of one population.
        opposite: Share of the variants, among those that both have, for which they are homozygous for different alleles, float64 [R].
    """

    first: np.ndarray
    second: np.ndarray
    kinship: np.ndarray
    opposite: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def degrees(self) -> list[str]:
        """Degree of relationship of each pair."""
        return [next((name for name, least in DEGREES.items() if value >= least), "more distant") for value in self.kinship]

    def to_remove(self) -> np.ndarray:
        """Indices of samples, sorted, without which no pair is left: again and again one of those with the most relatives, the later of equals."""
        pairs = {(int(one), int(other)) for one, other in zip(self.first, self.second, strict=True)}
        removed = []
        while pairs:
            members, counts = np.unique(np.array(list(pairs)), return_counts=True)
            removed.append(int(members[counts == counts.max()].max()))
            pairs = {pair for pair in pairs if removed[-1] not in pair}
        return np.array(sorted(removed), np.int64)


@without_callers_autocast()
def relatives(store: GenotypeStore, least: float = SECOND_DEGREE) -> Relatives:
    """Find the pairs of samples whose kinship is at least `least`.

    The estimate does not depend on allele frequencies, so that samples of several populations are compared; between populations it is negative.
    For ``n_i`` heterozygous calls of each of two samples among the autosomal variants that both have, and genotypes ``g``,

        kinship = 1/2 - sum (g_i - g_j)^2 / (4 min(n_i, n_j)).

    Time grows with the square of the number of samples: 2,504 samples with 22,684 variants take about 20 CPU seconds.

    Args:
        store: Genotypes of N samples.
        least: Smallest kinship (float, default 0.0884, of the second degree).

    Raises:
        InputError: The store has no autosomal variants.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ddvi_fast.genomes import store_from_codes
        >>> codes = np.random.default_rng(0).integers(0, 3, (3, 500))
        >>> found = relatives(store_from_codes(np.concatenate((codes, codes[:1])), Path(tempfile.mkdtemp()) / "store"))
        >>> found.first, found.second, found.kinship, found.degrees()
        (array([0]), array([3]), array([0.5]), ['duplicate or twin'])
    """
    least = _checks.number(least, "least", above=-1, at_most=0.5)
    with chromosome_set(store.num_autosomes):
        autosomal = store.variants.autosomal()
    _checks.require(bool(autosomal.any()), "store", "autosomal variants", "none")
    parts = []
    for rows in _slices(len(store)):
        for columns in _slices(len(store)):
            if columns.start >= rows.start:
                parts.append(_close(store, rows, columns, autosomal, least))
    first, second, kinship, opposite = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((second, first, -kinship))
    return Relatives(first[order], second[order], kinship[order], opposite[order])


def write(found: Relatives, store: GenotypeStore, table: str | Path | None, names: str | Path | None, overwrite: bool = False) -> list[Path]:
    """Write the table of pairs, and the names of samples to remove, one a line; returns the files.

    Raises:
        InputError: A file exists, unless `overwrite`.
    """
    paths = [_checks.path(path, "out").expanduser() for path in (table, names) if path is not None]
    for path in paths:
        _checks.require(overwrite or not path.exists(), "out", "a new file", str(path), "overwrite (--overwrite) replaces it")
    known = store.samples.name
    texts = []
    if table is not None:
        rows = zip(known[found.first], known[found.second], found.kinship, found.opposite, found.degrees(), strict=True)
        lines = [f"{one}\t{other}\t{kinship:.4f}\t{share:.4f}\t{degree}\n" for one, other, kinship, share, degree in rows]
        texts.append("sample1\tsample2\tkinship\topposite\tdegree\n" + "".join(lines))
    if names is not None:
        texts.append("#IID\n" + "".join(f"{name}\n" for name in known[found.to_remove()]))
    for path, text in zip(paths, texts, strict=True):
        _files.write_text(path, text)
    return paths


def _slices(count: int) -> list[slice]:
    return [slice(start, min(start + _SAMPLES, count)) for start in range(0, count, _SAMPLES)]


def _close(store: GenotypeStore, rows: slice, columns: slice, autosomal: np.ndarray, least: float) -> tuple[np.ndarray, ...]:
    """Related pairs of one block: indices of both samples, kinship and share of opposite homozygotes."""
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    squares, opposite, ours, theirs, both = (torch.zeros(shape, dtype=torch.float64, device="cpu") for _ in range(5))
    for chosen in _chunks(autosomal):
        one = _indicators(store, rows, chosen)
        other = one if rows == columns else _indicators(store, columns, chosen)
        (het, hom, sign), (het2, hom2, sign2) = one, other
        both_het, het_hom, hom_het, both_hom = het @ het2.mT, het @ hom2.mT, hom @ het2.mT, hom @ hom2.mT
        differ = (both_hom - sign @ sign2.mT) / 2
        squares += het_hom + hom_het + 4 * differ
        opposite += differ
        ours += both_het + het_hom
        theirs += both_het + hom_het
        both += both_het + het_hom + hom_het + both_hom
    kinship = 0.5 - squares / (4 * torch.minimum(ours, theirs)).clamp_min(1)
    kinship[torch.minimum(ours, theirs) == 0] = -torch.inf
    close = torch.triu(kinship >= least, 1) if rows == columns else kinship >= least
    i, j = close.nonzero(as_tuple=True)
    share = opposite[i, j] / both[i, j].clamp_min(1)
    return (i + rows.start).numpy(), (j + columns.start).numpy(), kinship[i, j].numpy(), share.numpy()


def _chunks(autosomal: np.ndarray) -> Iterator[tuple[int, int, Tensor | None]]:
    """First variant and number of each chunk, and the mask of its autosomal variants, None for all of them."""
    for first in range(0, len(autosomal), _VARIANTS):
        part = autosomal[first : first + _VARIANTS]
        if part.any():
            yield first, len(part), None if part.all() else torch.from_numpy(part)


def _indicators(store: GenotypeStore, rows: slice, chosen: tuple[int, int, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each call is heterozygous and whether it is homozygous, and -1 or 1 for either homozygote, float32 [R, V]."""
    first, count, kept = chosen
    codes = unpack(store.tile(rows, first, count), count)
    codes = codes if kept is None else codes[:, kept]
    heterozygous, called = codes == 1, codes != MISSING
    homozygous = called & ~heterozygous
    return heterozygous.float(), homozygous.float(), torch.where(homozygous, codes.float() - 1, 0.0)
