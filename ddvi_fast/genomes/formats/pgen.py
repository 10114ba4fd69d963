"""Reader of PLINK 2 files: .pgen, .pvar (or .pvar.zst) and .psam, by pgenlib. Genotypes count the alternate allele; dosages are not read.

Sites with several alternate alleles are dropped, or split: each of their alleles becomes a variant, and all others count as "other".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.formats.htslib import DROPPED, FILTERED, SPLIT, UNVARIED, is_sequence
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows, siblings
from ddvi_fast.genomes.tables import SampleTable, VariantTable, read_fields, read_lines, require_file, split_fields

_PASSING = ("PASS", ".")


def open_file(path: Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open the three files that `path` is one of.

    Raises:
        InputError: A file is missing or damaged, or .pvar or .psam does not belong to .pgen.
    """
    require_file(path)
    pgen, pvar, psam = siblings(path, (".pgen", (".pvar", ".pvar.zst"), ".psam"))
    pgenlib = _checks.library("pgenlib", "pgen")
    samples = _samples(psam)
    try:
        table = pgenlib.PvarReader(str(pvar).encode())
        reader = pgenlib.PgenReader(str(pgen).encode(), pvar=table)
    except RuntimeError as error:
        _checks.fail(str(pgen), "a PLINK 2 file with its .pvar", _words(error))
    found = (reader.get_raw_sample_ct(), reader.get_variant_ct())
    wanted = (len(samples), table.get_variant_ct())
    meaning = f"{wanted[1]} variants (.pvar) of {wanted[0]} samples (.psam)"
    _checks.require(found == wanted, str(pgen), meaning, f"{found[1]} variants of {found[0]} samples", ".pvar or .psam belongs to another file")
    passing = _passing(pvar) if passing_only else np.ones(wanted[1], bool)
    notes: Counter[str] = Counter()
    return Source(pgen, samples, _blocks(reader, table, len(samples), passing, multiallelic, notes, pgen), notes)


def _samples(psam: Path) -> SampleTable:
    """Names of .psam, whose heading starts with #FID or #IID, or without one those of a .fam."""
    heading = next((line for line in read_lines(psam) if not line.startswith(b"##")), b"").decode(errors="replace")
    names = split_fields(heading.removeprefix("#")) if heading.startswith(("#FID", "#IID")) else ["FID", "IID"]
    _checks.require("IID" in names, str(psam), "a column IID", " ".join(names))
    rows = list(read_fields(psam, len(names) if len(names) < 3 else 1, "a sample name"))
    individual = [row[names.index("IID")] for row in rows]
    return SampleTable.from_names(individual, psam, [row[names.index("FID")] for row in rows] if "FID" in names else None)


def _passing(pvar: Path) -> np.ndarray:
    _checks.require(pvar.suffix != ".zst", str(pvar), "an uncompressed .pvar, for its FILTER", "a compressed one", "zstd -d makes it")
    heading: list[str] = []
    found = []
    for line in read_lines(pvar):
        fields = split_fields(line.decode(errors="replace"))
        if line.startswith(b"#"):
            heading = fields
        elif fields:
            found.append("FILTER" not in heading or fields[heading.index("FILTER")] in _PASSING)
    return np.array(found, bool)


def _blocks(
    reader: Any, table: Any, num_samples: int, passing: np.ndarray, multiallelic: str, notes: Counter[str], pgen: Path
) -> Iterator[Block]:  # fmt: skip
    step = block_rows(num_samples)
    for start in range(0, len(passing), step):
        stop = min(start + step, len(passing))
        counts = np.empty((stop - start, num_samples), np.int8)
        chosen = [each for place in range(start, stop) for each in _chosen(table, place, passing, multiallelic, notes)]
        try:
            reader.read_range(start, stop, counts)
            values = counts if all(allele == 1 for _, allele, _ in chosen) and len(chosen) == len(counts) else _of(reader, counts, start, chosen)
        except RuntimeError as error:
            _checks.fail(str(pgen), "records that can be read", _words(error))
        if chosen:
            yield Block(VariantTable.from_rows([row for *_, row in chosen]), np.where(values < 0, MISSING, values).astype(np.uint8))


def _of(reader: Any, counts: np.ndarray, start: int, chosen: list[tuple]) -> np.ndarray:
    """Counts int8 [.., N] of the chosen alleles, given those of the first alternate alleles of all variants."""
    values = counts[[place - start for place, *_ in chosen]] if chosen else counts[:0]
    for number, (place, allele, _) in enumerate(chosen):
        if allele > 1:
            reader.read(place, values[number], allele)
    return values


def _chosen(table: Any, place: int, passing: np.ndarray, multiallelic: str, notes: Counter[str]) -> Iterator[tuple]:
    """Place, number of the counted allele, and row of the table of each variant that one record becomes."""
    if not passing[place]:
        notes[FILTERED] += 1
        return
    alleles = [table.get_allele_code(place, number).decode() for number in range(table.get_allele_ct(place))]
    if alleles[1:] in ([], ["."]):
        notes[UNVARIED] += 1
        return
    if len(alleles) > 2:
        notes[SPLIT if multiallelic == "split" else DROPPED] += 1
        if multiallelic == "drop":
            return
    chromosome, position = table.get_variant_chrom(place).decode(), int(table.get_variant_pos(place))
    for number, allele in enumerate(alleles[1:], 1):
        if is_sequence(allele, notes):
            yield place, number, (chromosome, position, table.get_variant_id(place).decode(), allele, alleles[0])


def _words(error: RuntimeError) -> str:
    """The message of pgenlib, which may be bytes."""
    text = error.args[0] if error.args else ""
    return " ".join((text.decode(errors="replace") if isinstance(text, bytes) else str(text)).split())
