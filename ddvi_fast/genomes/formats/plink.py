"""Reader of PLINK 1 binary files: .bed, .bim and .fam (EIGENSOFT: .pedsnp and .pedind). Genotypes count the allele A1 (fifth column of .bim).

Samples are named by their individual names, or by ``family:individual`` where two families have a member of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packing import MISSING, packed_width
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows, siblings
from ddvi_fast.genomes.tables import SampleTable, VariantTable, read_fields, read_variants, require_file

_MAGIC, _VARIANT_MAJOR = b"\x6c\x1b", b"\x01"
_COLUMNS = {"chromosome": 0, "name": 1, "position": 3, "counted": 4, "other": 5}


def open_file(path: Path) -> Source:
    """Open the three files that `path` is one of.

    Raises:
        InputError: A file is missing, or `.bed` is not a PLINK 1 file or does not have the length that `.bim` and `.fam` imply.
    """
    require_file(path)
    bed, bim, fam = siblings(path, (".bed", (".bim", ".pedsnp"), (".fam", ".pedind")))
    rows = [fields[:2] for fields in read_fields(fam, 2, "a family and a sample name")]
    samples = SampleTable.from_names([name for _, name in rows], fam, [family for family, _ in rows])
    variants = read_variants(bim, _COLUMNS, "six fields: chromosome, name, morgans, position, A1, A2", without_morgans=True)
    _check_bed(bed, len(samples), len(variants))
    return Source(bed, samples, _blocks(_checks.library("bed_reader", "genomes"), bed, len(samples), variants))


def _check_bed(bed: Path, num_samples: int, num_variants: int) -> None:
    with bed.open("rb") as file:
        head = file.read(3)
    _checks.require(head[:2] == _MAGIC, str(bed), "a PLINK 1 .bed file", f"one that starts with the bytes {head[:2].hex(' ')}")
    _checks.require(head[2:] == _VARIANT_MAJOR, str(bed), "a variant-major file", "a sample-major one", "convert it with plink --make-bed")
    wanted, size = 3 + num_variants * packed_width(num_samples), bed.stat().st_size
    meaning = f"{wanted} bytes for {num_variants} variants (.bim) of {num_samples} samples (.fam)"
    hint = "the file is truncated, or .bim or .fam belongs to another file" if size < wanted else ".bim or .fam belongs to another file"
    _checks.require(size == wanted, str(bed), meaning, f"{size} bytes", hint)


def _blocks(bed_reader: ModuleType, bed: Path, num_samples: int, variants: VariantTable) -> Iterator[Block]:
    step = block_rows(num_samples)
    with bed_reader.open_bed(bed, iid_count=num_samples, sid_count=len(variants), skip_format_check=True, num_threads=1) as opened:
        for start in range(0, len(variants), step):
            chosen = slice(start, min(start + step, len(variants)))
            counts = opened.read(index=np.s_[:, chosen], dtype="int8", order="F").T
            yield Block(variants.take(chosen), np.where(counts < 0, MISSING, counts).astype(np.uint8))
