"""Program that reads a VCF or BCF file by htslib and writes its genotypes to the standard output, for `formats.vcf`.

htslib, or its binding, may crash on a damaged file. It therefore runs in a process of its own, whose end is an error message of the other.
This file imports nothing of the package, so that it starts quickly.

A message is a letter, the number of its bytes (8, little-endian) and these: ``S`` names of the samples, ``V`` rows of the variant table,
``C`` codes uint8 [variants, samples] of the same variants, ``N`` notes, at the end, ``E`` an error; JSON, but for the codes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import numpy as np

SPLIT, DROPPED = "sites with several alternate alleles, split", "sites with several alternate alleles"
UNVARIED, SYMBOLIC, FILTERED = "records without an alternate allele", "alleles that are no sequence", "records that do not pass their FILTER"
HALF, OTHERS = "half calls, taken as missing", "calls of * or <NON_REF>, taken as missing"
WITHOUT_CALLS = "records without genotypes (GT), taken as missing"

_MISSING = 3
_NO_CALL, _NO_ALLELE = -1, -2  # in cyvcf2: a missing allele, and the second allele of a haploid call
_BASES = frozenset("ACGTNacgtn")
_PLACEHOLDERS = frozenset(("*", "<*>", "<NON_REF>"))


class RefusedFile(Exception):
    """A file that is refused: where in it, what was expected, what was found, and advice."""


class Variant(NamedTuple):
    """One alternate allele of a record."""

    row: tuple[str, int, str, str, str]  # chromosome, position, name, counted and other allele
    calls: np.ndarray  # int16 [N, 2], of the record
    number: int  # of the counted allele, from 1
    alternates: int  # number of them
    strict: bool  # whether calls of other alternate alleles are missing


def main(path: str, multiallelic: str, passing_only: str, block_codes: str) -> None:
    """Read `path`; a block has at most `block_codes` codes."""
    import cyvcf2

    try:
        opened = cyvcf2.VCF(path)
    except Exception as error:  # cyvcf2 raises OSError or Exception
        _fail("", "a VCF or BCF file", f"{type(error).__name__}: {error}")
    _send(b"S", list(opened.samples))
    if not opened.samples:
        return
    notes: Counter[str] = Counter()
    step = max(1, int(block_codes) // len(opened.samples))
    alleles = _alleles(opened, notes, multiallelic, passing_only == "True")
    while batch := list(islice(alleles, step)):
        codes = codes_of(batch, notes)
        _send(b"V", [variant.row for variant in batch])
        _message(b"C", codes.data.cast("B"))
    _send(b"N", notes)


def _alleles(opened: Any, notes: Counter[str], multiallelic: str, passing_only: bool) -> Iterator[Variant]:
    records, last, called, fields = iter(opened), "the header", 0, "none"
    while True:
        try:
            record = next(records)
        except StopIteration:
            break
        except Exception as error:  # as above
            _fail("", "records that can be read", f"a damaged one after {last}: {type(error).__name__}: {error}")
        if record.CHROM.startswith("#"):
            _fail(f", after {last}", "one header, at the beginning", "another one", "bcftools merge or concat join files; cat does not")
        last = f"{record.CHROM}:{record.POS}"
        chosen = chosen_alleles(record, notes, multiallelic, passing_only)
        if not chosen:
            continue
        if "GT" in record.FORMAT:
            called, calls = called + 1, _calls(record, last)
        else:
            fields = ", ".join(record.FORMAT) or "none"
            notes[WITHOUT_CALLS] += 1
            calls = np.full((len(opened.samples), 2), _NO_CALL, np.int16)
        strict = with_placeholders(record.ALT)
        for number in chosen:
            row = (record.CHROM, record.POS, record.ID or ".", record.ALT[number - 1], record.REF)
            yield Variant(row, calls, number, len(record.ALT), strict)
    if notes[WITHOUT_CALLS] and not called:
        _fail("", "genotypes (the field GT)", f"the fields {fields} alone")


def with_placeholders(alternates: Sequence[str]) -> bool:
    """Whether all but one of several alternate alleles stand for other alleles, deleted or not seen."""
    return len(alternates) > 1 and sum(allele not in _PLACEHOLDERS for allele in alternates) == 1


def chosen_alleles(record: Any, notes: Counter[str], multiallelic: str, passing_only: bool) -> list[int]:
    """Numbers, from 1, of the alternate alleles that become variants."""
    if passing_only and record.FILTER is not None:
        notes[FILTERED] += 1
        return []
    if not record.ALT or record.ALT == ["<NON_REF>"] or record.ALT == ["<*>"]:
        notes[UNVARIED] += 1
        return []
    if with_placeholders(record.ALT):
        return [number for number, allele in enumerate(record.ALT, 1) if allele not in _PLACEHOLDERS and is_sequence(allele, notes)]
    if len(record.ALT) > 1:
        notes[SPLIT if multiallelic == "split" else DROPPED] += 1
        if multiallelic == "drop":
            return []
    return [number for number, allele in enumerate(record.ALT, 1) if is_sequence(allele, notes)]


def is_sequence(allele: str, notes: Counter[str]) -> bool:
    """Whether an allele is a sequence, or a number, as msprime writes them; others are counted."""
    if _BASES.issuperset(allele) or (len(allele) == 1 and allele.isdecimal()):
        return True
    notes[SYMBOLIC] += 1
    return False


def _calls(record: Any, where: str) -> np.ndarray:
    alleles = record.genotype.array()[:, :-1]  # the last column tells whether the call is phased
    if alleles.shape[1] > 2:
        _fail(f", {where}", "at most two alleles a call", str(alleles.shape[1]))
    if alleles.shape[1] == 1:
        return np.concatenate((alleles, np.full_like(alleles, _NO_ALLELE)), axis=1)
    return alleles


def codes_of(batch: Sequence[Variant], notes: Counter[str]) -> np.ndarray:
    """Numbers of copies of the counted alleles, uint8 [variants, samples]."""
    alleles = np.stack([variant.calls for variant in batch])
    numbers, alternates = np.array([[variant.number, variant.alternates] for variant in batch]).T
    most = alleles.reshape(len(batch), -1).max(1)
    for place in np.flatnonzero(most > alternates)[:1]:
        chromosome, position, *_ = batch[place].row
        expected = f"alleles from 0 to {alternates[place]}, the number of alternate ones"
        _fail(f", {chromosome}:{position}", expected, f"a call of allele {most[place]}")
    if alleles.min() >= 0 and alternates.max() == 1:
        return (alleles[..., 0] + alleles[..., 1]).astype(np.uint8)
    first, second = np.moveaxis(alleles, 2, 0)
    half = (second != _NO_ALLELE) & ((first == _NO_CALL) != (second == _NO_CALL))
    second = np.where(second == _NO_ALLELE, first, second)
    wanted, strict = numbers[:, None], np.array([[variant.strict] for variant in batch])
    counts = (first == wanted).astype(np.uint8) + (second == wanted)
    known = [(allele == 0) | (allele == wanted) for allele in (first, second)] if strict.any() else [strict, strict]
    others = strict & (first >= 0) & (second >= 0) & ~(known[0] & known[1])
    counts[(first < 0) | (second < 0) | others] = _MISSING
    notes[HALF] += int(half.sum())
    notes[OTHERS] += int(others.sum())
    return counts


def _message(kind: bytes, content: Any) -> None:
    sys.stdout.buffer.write(kind + len(content).to_bytes(8, "little"))
    sys.stdout.buffer.write(content)


def _send(kind: bytes, value: Any) -> None:
    _message(kind, json.dumps(value).encode())
    sys.stdout.buffer.flush()


def _fail(where: str, expected: str, got: str, hint: str = "") -> NoReturn:
    raise RefusedFile(where, expected, " ".join(got.split()), hint)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RefusedFile as refused:
        _send(b"E", refused.args)
        raise SystemExit(1) from None
