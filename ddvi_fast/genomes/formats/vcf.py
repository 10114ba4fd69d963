"""Reader of VCF and BCF files (plain, gzip or bgzip) by htslib. Genotypes count the alternate allele.

- A call without alleles is missing; so is half a call (one allele of two), and these are counted.
- A haploid call counts twice, as in PLINK: the chromosome of a male, or of an inbred line, is homozygous.
- A site with several alternate alleles is dropped, or split: each of its alleles becomes a variant, and all others count as "other".
- Records without an alternate allele, and symbolic alleles (``<DEL>``, ``*``, breakends), are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows
from ddvi_fast.genomes.tables import SampleTable, VariantTable, require_file

SPLIT, DROPPED = "sites with several alternate alleles, split", "sites with several alternate alleles"
UNVARIED, SYMBOLIC, FILTERED = "records without an alternate allele", "alleles that are no sequence", "records that do not pass their FILTER"
HALF = "half calls, taken as missing"

_NO_CALL, _NO_ALLELE = -1, -2  # in cyvcf2: a missing allele, and the second allele of a haploid call
_BASES = frozenset("ACGTNacgtn")
_BGZF_HEAD, _BGZF_END = b"\x1f\x8b\x08\x04", bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def open_file(path: Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open a VCF or BCF file.

    Raises:
        InputError: The file is missing, truncated, not a VCF, or without genotypes.
    """
    require_file(path)
    _check_end(path)
    cyvcf2 = _checks.library("cyvcf2", "genomes")
    try:
        opened = cyvcf2.VCF(str(path))
    except Exception as error:  # cyvcf2 raises OSError or Exception
        _checks.fail(str(path), "a VCF or BCF file", _checks.one_line(error))
    _checks.require(len(opened.samples) > 0, str(path), "a VCF with genotypes", "one without samples")
    notes: Counter[str] = Counter()
    records = _records(path, opened, notes, multiallelic, passing_only)
    return Source(path, SampleTable.from_names(opened.samples, path), _blocks(records, len(opened.samples), notes), notes)


def _check_end(path: Path) -> None:
    """Refuse a bgzip file without its empty last block: it is truncated, of which htslib only warns."""
    with path.open("rb") as file:
        head = file.read(16)
        if not (head.startswith(_BGZF_HEAD) and head[12:14] == b"BC"):
            return
        file.seek(-min(path.stat().st_size, len(_BGZF_END)), 2)
        _checks.require(file.read() == _BGZF_END, str(path), "a whole bgzip file", "one that is truncated")


def _records(path: Path, opened: Any, notes: Counter[str], multiallelic: str, passing_only: bool) -> Iterator[tuple[tuple, np.ndarray, int]]:
    """For every allele to keep its row of the variant table, the alleles of its site, int16 [N, 2], and its number."""
    records, last = iter(opened), "the header"
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except Exception as error:  # as above
            _checks.fail(str(path), "records that can be read", f"a damaged one after {last}: {_checks.one_line(error)}")
        last = f"{record.CHROM}:{record.POS}"
        alleles = list(_chosen(record, notes, multiallelic, passing_only))
        calls = _calls(record, path, last) if alleles else None
        for number in alleles:
            name = record.ID or "."
            yield (record.CHROM, record.POS, name, record.ALT[number - 1], record.REF), calls, number


def _chosen(record: Any, notes: Counter[str], multiallelic: str, passing_only: bool) -> Iterator[int]:
    """Numbers, from 1, of the alternate alleles that become variants."""
    if passing_only and record.FILTER is not None:
        notes[FILTERED] += 1
        return
    if not record.ALT:
        notes[UNVARIED] += 1
        return
    if len(record.ALT) > 1:
        notes[SPLIT if multiallelic == "split" else DROPPED] += 1
        if multiallelic == "drop":
            return
    for number, allele in enumerate(record.ALT, 1):
        if _BASES.issuperset(allele):
            yield number
        else:
            notes[SYMBOLIC] += 1


def _calls(record: Any, path: Path, where: str) -> np.ndarray:
    if "GT" not in record.FORMAT:
        _checks.fail(f"{path}, {where}", "genotypes (the field GT)", f"the fields {', '.join(record.FORMAT) or 'none'} alone")
    alleles = record.genotype.array()[:, :-1]  # the last column tells whether the call is phased
    _checks.require(alleles.shape[1] <= 2, f"{path}, {where}", "at most two alleles a call", alleles.shape[1])
    if alleles.shape[1] == 1:
        return np.concatenate((alleles, np.full_like(alleles, _NO_ALLELE)), axis=1)
    return alleles


def _blocks(records: Iterator[tuple[tuple, np.ndarray, int]], num_samples: int, notes: Counter[str]) -> Iterator[Block]:
    step = max(1, block_rows(num_samples) // 4)  # a call has two alleles of two bytes each
    while batch := list(islice(records, step)):
        yield _block(*zip(*batch, strict=True), notes)


def _block(rows: Sequence[tuple], calls: Sequence[np.ndarray], numbers: Sequence[int], notes: Counter[str]) -> Block:
    first, second = np.moveaxis(np.stack(calls), 2, 0)
    half = (second != _NO_ALLELE) & ((first == _NO_CALL) != (second == _NO_CALL))
    second = np.where(second == _NO_ALLELE, first, second)
    wanted = np.array(numbers)[:, None]
    counts = (first == wanted).astype(np.uint8) + (second == wanted)
    counts[(first < 0) | (second < 0)] = MISSING
    notes[HALF] += int(half.sum())
    return Block(VariantTable.from_rows(rows), counts)
