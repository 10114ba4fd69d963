"""PLINK 1 binary files: .bed, .bim and .fam. Genotypes count the allele A1 (fifth column of .bim)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packing import MISSING, packed_width
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows, library, siblings
from ddvi_fast.genomes.tables import SampleTable, VariantTable, read_fields, require_file, whole_number

_MAGIC, _VARIANT_MAJOR = b"\x6c\x1b", b"\x01"


def open_file(path: Path) -> Source:
    """Open the three files that `path` is one of.

    Raises:
        InputError: a file is missing, `.bed` is no PLINK 1 file or has another length than `.bim` and `.fam` ask for.
    """
    require_file(path)
    bed, bim, fam = siblings(path, (".bed", ".bim", ".fam"))
    samples = SampleTable.from_names([fields[1] for fields in read_fields(fam, 2, "a family and a sample name")], fam)
    variants = _read_variants(bim)
    _check_bed(bed, len(samples), len(variants))
    library("bed_reader")
    return Source(bed, samples, _blocks(bed, len(samples), variants))


def _read_variants(bim: Path) -> VariantTable:
    rows = []
    for number, fields in enumerate(read_fields(bim, 6, "six fields: chromosome, name, morgans, position, A1, A2"), 1):
        chromosome, name, _, position, counted, other = fields[:6]
        rows.append((chromosome, whole_number(position, bim, number), name, counted, other))
    _checks.require(len(rows) > 0, str(bim), "at least one variant", 0)
    return VariantTable.from_rows(rows)


def _check_bed(bed: Path, num_samples: int, num_variants: int) -> None:
    with bed.open("rb") as file:
        head = file.read(3)
    _checks.require(head[:2] == _MAGIC, str(bed), "a PLINK 1 .bed file", f"one that starts with the bytes {head[:2].hex(' ')}")
    _checks.require(head[2:] == _VARIANT_MAJOR, str(bed), "a variant-major file", "a sample-major one", "plink --make-bed writes it anew")
    wanted, size = 3 + num_variants * packed_width(num_samples), bed.stat().st_size
    meaning = f"{wanted} bytes for {num_variants} variants (.bim) of {num_samples} samples (.fam)"
    hint = "the file is truncated, or .bim or .fam is another file's" if size < wanted else "another file's .bim or .fam"
    _checks.require(size == wanted, str(bed), meaning, f"{size} bytes", hint)


def _blocks(bed: Path, num_samples: int, variants: VariantTable) -> Iterator[Block]:
    step = block_rows(num_samples)
    with library("bed_reader").open_bed(bed, iid_count=num_samples, sid_count=len(variants), skip_format_check=True, num_threads=1) as opened:
        for start in range(0, len(variants), step):
            chosen = slice(start, min(start + step, len(variants)))
            counts = opened.read(index=np.s_[:, chosen], dtype="int8", order="F").T
            yield Block(variants.take(np.arange(chosen.start, chosen.stop)), np.where(counts < 0, MISSING, counts).astype(np.uint8))
