"""Reader of EIGENSOFT's files: .geno, .snp and .ind. Genotypes count the first allele of .snp (its fifth column).

.geno is one of

- EIGENSTRAT: text, a line per variant, a character per sample, 9 for a missing call;
- ANCESTRYMAP: text, a line ``variant sample genotype`` per call;
- PACKEDANCESTRYMAP: records of 2-bit codes, a record per variant, first sample in the highest bits, after a record that starts with
  ``GENO``;
- TGENO, transposed: 48 bytes that start with ``TGENO``, then a record per sample.

The packed files name the hashes of the samples' and of the variants' names: a .snp or .ind of another file, or in another order, is refused.
Samples of the population ``Ignore`` are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packing import MISSING, PER_BYTE, packed_width
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows, siblings
from ddvi_fast.genomes.tables import SampleTable, VariantTable, read_fields, read_lines, read_variants, require_file

IGNORED = "samples of the population Ignore"
_HEAD = 48  # bytes of the header of a transposed file, and smallest number of those of a record of a packed one
_COLUMNS = {"name": 0, "chromosome": 1, "position": 3, "counted": 4, "other": 5}
_GENO = (".geno", ".eigenstratgeno", ".packedancestrymapgeno", ".ancestrymapgeno")
_CODES = np.full(256, 255, np.uint8)
_CODES[[ord(character) for character in "0129"]] = (0, 1, 2, MISSING)
_CALLS = {"0": 0, "1": 1, "2": 2, "9": MISSING, "-1": MISSING}
_SHIFTS = np.arange(2 * (PER_BYTE - 1), -1, -2, dtype=np.uint8)


def open_file(path: Path) -> Source:
    """Open the three files that `path` is one of.

    Raises:
        InputError: A file is missing, .geno does not have a row for each variant of .snp and a column for each sample of .ind, or its hashes
            are not those of their names.
    """
    require_file(path)
    geno, snp, ind = siblings(path, (_GENO, ".snp", ".ind"))
    rows = [fields[:3] for fields in read_fields(ind, 3, "a sample name, its sex and its population")]
    samples = SampleTable.from_names([name for name, *_ in rows], ind)
    variants = read_variants(snp, _COLUMNS, "six fields: name, chromosome, morgans, position, two alleles")
    kept = np.array([population.lower() != "ignore" for *_, population in rows])
    _checks.require(bool(kept.any()), str(ind), "samples of another population than Ignore", "none")
    head = _head(geno)
    notes = Counter({IGNORED: int((~kept).sum())})
    if head.startswith((b"GENO ", b"TGENO ")):
        # The table of variants names those without a name itself, but the hash is that of the file.
        _check_hashes(geno, head, samples.name, [fields[0] for fields in read_fields(snp, 6, "six fields")])
    blocks = _reader(head)(geno, samples, variants)
    return Source(geno, samples.take(kept), blocks if kept.all() else _of_samples(blocks, kept), notes)


def _head(geno: Path) -> bytes:
    """Beginning of the first line."""
    with geno.open("rb") as file:
        start = file.read(4096)
    return next(read_lines(geno), b"") if start.startswith(b"\x1f\x8b") else start.split(b"\n")[0]


def _reader(head: bytes) -> Callable[[Path, SampleTable, VariantTable], Iterator[Block]]:
    if head.startswith(b"GENO "):
        return _packed_blocks
    if head.startswith(b"TGENO "):
        return _transposed_blocks
    return _call_blocks if len(head.split()) == 3 else _text_blocks


def _of_samples(blocks: Iterable[Block], kept: np.ndarray) -> Iterator[Block]:
    for block in blocks:
        yield Block(block.variants, np.ascontiguousarray(block.codes[:, kept]))


def _check_hashes(geno: Path, head: bytes, samples: Iterable[str], variants: Iterable[str]) -> None:
    """Compare the hashes in a header with those of the names; other programs write zeros, which tell nothing."""
    fields = head[:_HEAD].split(b"\0")[0].split()
    for stated, names, ending in zip(fields[3:5], (samples, variants), (".ind", ".snp"), strict=False):
        try:
            number = int(stated, 16)
        except ValueError:
            continue
        got = f"{stated.decode()}, which is another"
        hint = f"the names in {ending} or their order are not those that the file was written with"
        _checks.require(number in (0, names_hash(names)), str(geno), f"the hash of the names in {ending}", got, hint)


def names_hash(names: Iterable[str]) -> int:
    """Hash of a sequence of names in EIGENSOFT's headers.

    Example:
        >>> f"{names_hash(['SAMPLE0', 'SAMPLE1', 'SAMPLE2', 'SAMPLE3', 'SAMPLE4']):x}"
        'd28ee92a'
    """
    total = 0
    for name in names:
        number = 0
        for byte in name.encode():
            number = number * 23 + (byte if byte < 128 else byte - 256)  # a signed char
        total = (total * 17 ^ number) & 0xFFFFFFFF
    return total


def _text_blocks(geno: Path, samples: SampleTable, variants: VariantTable) -> Iterator[Block]:
    lines, start, num_samples = (line for line in read_lines(geno) if line), 0, len(samples)
    while block := list(islice(lines, block_rows(num_samples))):
        for number, line in enumerate(block, start + 1):
            _checks.require(len(line) == num_samples, f"{geno}, line {number}", f"{num_samples} genotypes, one for each sample of .ind", len(line))
        codes = _CODES[np.frombuffer(b"".join(block), np.uint8)].reshape(len(block), num_samples)
        wrong = np.argwhere(codes > MISSING)
        if len(wrong):
            row, column = wrong[0]
            _checks.fail(f"{geno}, line {start + row + 1}", "genotypes 0, 1, 2 or 9", chr(block[row][column]))
        _checks.require(start + len(block) <= len(variants), str(geno), f"{len(variants)} lines, one for each variant of .snp", "more")
        yield Block(variants.take(slice(start, start + len(block))), codes)
        start += len(block)
    _checks.require(start == len(variants), str(geno), f"{len(variants)} lines, one for each variant of .snp", start, "is the file truncated?")


def _call_blocks(geno: Path, samples: SampleTable, variants: VariantTable) -> Iterator[Block]:
    """Calls in any order; those that the file does not have are missing."""
    rows, columns = ({name: place for place, name in enumerate(table.name)} for table in (variants, samples))
    codes = np.full((len(variants), len(samples)), MISSING, np.uint8)
    for number, line in enumerate(read_fields(geno, 3, "a variant, a sample and a genotype"), 1):
        variant, sample, call = line[:3]
        known = variant in rows and sample in columns and call in _CALLS
        _checks.require(known, f"{geno}, line {number}", "a variant of .snp, a sample of .ind and a genotype 0, 1, 2 or 9", " ".join(line))
        codes[rows[variant], columns[sample]] = _CALLS[call]
    yield Block(variants, codes)


def _packed_blocks(geno: Path, samples: SampleTable, variants: VariantTable) -> Iterator[Block]:
    num_samples = len(samples)
    width = max(_HEAD, packed_width(num_samples))
    records = _records(geno, width, width, len(variants), len(variants), num_samples)
    step = block_rows(num_samples)
    for start in range(0, len(variants), step):
        codes = _unpacked(records[start : start + step, : packed_width(num_samples)], num_samples)
        yield Block(variants.take(slice(start, start + len(codes))), codes)


def _transposed_blocks(geno: Path, samples: SampleTable, variants: VariantTable) -> Iterator[Block]:
    records = _records(geno, _HEAD, packed_width(len(variants)), len(samples), len(variants), len(samples))
    step = -(-block_rows(len(samples)) // PER_BYTE) * PER_BYTE
    for start in range(0, len(variants), step):
        count = min(step, len(variants) - start)
        codes = _unpacked(records[:, start // PER_BYTE : packed_width(start + count)], count)
        yield Block(variants.take(slice(start, start + count)), np.ascontiguousarray(codes.T))


def _records(geno: Path, head: int, width: int, number: int, num_variants: int, num_samples: int) -> np.ndarray:
    wanted, size = head + width * number, geno.stat().st_size
    meaning = f"{wanted} bytes for {num_variants} variants (.snp) of {num_samples} samples (.ind)"
    _checks.require(size == wanted, str(geno), meaning, f"{size} bytes", "the file is truncated, or .snp or .ind belongs to another file")
    return np.memmap(geno, np.uint8, "r", head, (number, width))


def _unpacked(raw: np.ndarray, count: int) -> np.ndarray:
    """Codes uint8 [rows, count] of packed ones, the first in the highest bits."""
    return np.ascontiguousarray((raw[:, :, None] >> _SHIFTS & MISSING).reshape(len(raw), -1)[:, :count])
