"""Reader of EIGENSTRAT files: .geno, .snp and .ind. Genotypes count the first allele of .snp (its fifth column).

.geno is text (a line per variant, a character per sample, 9 for a missing call), or PACKEDANCESTRYMAP: records of 2-bit codes, first
sample in the highest bits, after a first record that starts with ``GENO``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packing import MISSING, PER_BYTE, packed_width
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows, siblings
from ddvi_fast.genomes.tables import SampleTable, VariantTable, read_fields, read_lines, read_variants, require_file

_LEAST_RECORD = 48  # smallest number of bytes of a record of a packed file
_COLUMNS = {"name": 0, "chromosome": 1, "position": 3, "counted": 4, "other": 5}
_CODES = np.full(256, 255, np.uint8)
_CODES[[ord(character) for character in "0129"]] = (0, 1, 2, MISSING)


def open_file(path: Path) -> Source:
    """Open the three files that `path` is one of.

    Raises:
        InputError: A file is missing, or .geno does not have a row for each variant of .snp and a column for each sample of .ind.
    """
    require_file(path)
    geno, snp, ind = siblings(path, (".eigenstratgeno" if path.name.endswith(".eigenstratgeno") else ".geno", ".snp", ".ind"))
    samples = SampleTable.from_names([fields[0] for fields in read_fields(ind, 3, "a sample name, its sex and its population")], ind)
    variants = read_variants(snp, _COLUMNS, "six fields: name, chromosome, morgans, position, two alleles")
    with geno.open("rb") as file:
        head = file.read(5)
    _checks.require(head != b"TGENO", str(geno), "text, or PACKEDANCESTRYMAP", "a transposed file (TGENO)", "convert it with convertf")
    reader = _packed_blocks if head == b"GENO " else _text_blocks
    return Source(geno, samples, reader(geno, len(samples), variants))


def _text_blocks(geno: Path, num_samples: int, variants: VariantTable) -> Iterator[Block]:
    lines, start = (line for line in read_lines(geno) if line), 0
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


def _packed_blocks(geno: Path, num_samples: int, variants: VariantTable) -> Iterator[Block]:
    width = max(_LEAST_RECORD, packed_width(num_samples))
    wanted, size = width * (1 + len(variants)), geno.stat().st_size
    meaning = f"{wanted} bytes for {len(variants)} variants (.snp) of {num_samples} samples (.ind)"
    _checks.require(size == wanted, str(geno), meaning, f"{size} bytes", "the file is truncated, or .snp or .ind belongs to another file")
    records = np.memmap(geno, np.uint8, "r", width, (len(variants), width))
    shifts = np.arange(2 * (PER_BYTE - 1), -1, -2, dtype=np.uint8)
    step = block_rows(num_samples)
    for start in range(0, len(variants), step):
        raw = records[start : start + step, : packed_width(num_samples)]
        codes = (raw[:, :, None] >> shifts & MISSING).reshape(len(raw), -1)[:, :num_samples]
        yield Block(variants.take(slice(start, start + len(raw))), np.ascontiguousarray(codes))
