"""Opened genotype files as samples and blocks of variants, and the choice of the reader by the name of the file."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.tables import SampleTable, VariantTable

# Number of codes of one block, which are in memory at a time.
BLOCK_CODES = 1 << 22

MULTIALLELIC = ("drop", "split")
_READERS = {
    ".bed": "plink", ".bim": "plink", ".fam": "plink",
    ".vcf": "vcf", ".vcf.gz": "vcf", ".vcf.bgz": "vcf", ".bcf": "vcf",
    ".geno": "eigenstrat", ".snp": "eigenstrat", ".ind": "eigenstrat", ".geno.gz": "eigenstrat", ".eigenstratgeno": "eigenstrat",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Block:
    """Some variants of a file: codes uint8 [variants, samples], 3 where a call is missing."""

    variants: VariantTable
    codes: np.ndarray


class Source:
    """An opened genotype file.

    Args:
        path: The file.
        samples: Its samples.
        blocks: Iterator over its variants.
        notes: Number of records that the reader left out or changed, by reason; complete when `blocks` is exhausted.
    """

    def __init__(self, path: Path, samples: SampleTable, blocks: Iterator[Block], notes: Counter[str] | None = None) -> None:
        self.path, self.samples, self.blocks = path, samples, blocks
        self.notes: Counter[str] = Counter() if notes is None else notes


def open_source(path: str | Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open a PLINK 1, VCF, BCF or EIGENSTRAT file, which the ending of its name tells apart.

    Args:
        path: Any of the three files of PLINK or EIGENSTRAT, their common name without an ending, or a VCF or BCF file.
        multiallelic: Treatment of sites of a VCF with several alternate alleles: ``"drop"`` (default; they are counted), or ``"split"``
            into a variant for each allele, which counts its copies.
        passing_only: Whether to leave out records of a VCF whose FILTER is neither PASS nor empty (bool, default False).

    Raises:
        InputError: No reader is known for the name, a file is missing or damaged, or a library is not installed.
    """
    path = _checks.path(path, "file").expanduser()
    _checks.choice(multiallelic, MULTIALLELIC, "multiallelic")
    ending = ending_of(path)
    if ending is None:
        path, ending = _completed(path)
    reader = importlib.import_module(f"ddvi_fast.genomes.formats.{_READERS[ending]}")
    options = {"multiallelic": multiallelic, "passing_only": passing_only} if _READERS[ending] == "vcf" else {}
    return reader.open_file(path, **options)


def ending_of(path: Path) -> str | None:
    """Longest known ending of the name of a file, or None."""
    return max((ending for ending in _READERS if path.name.lower().endswith(ending)), key=len, default=None)


def siblings(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files that belong to `path`: its name with each of `endings`, or with that and ".gz".

    Raises:
        InputError: One of them is missing.
    """
    base = str(path)[: -len(ending_of(path) or "")]
    found = []
    for ending in endings:
        plain, zipped = Path(base + ending), Path(base + ending + ".gz")
        found.append(zipped if zipped.is_file() and not plain.is_file() else plain)
        _checks.require(found[-1].is_file(), "file", f"{plain.name} beside {path.name}", f"no such file in {path.parent}")
    return found


def block_rows(num_samples: int) -> int:
    """Number of variants of a block for this number of samples."""
    return max(1, BLOCK_CODES // max(1, num_samples))


def _completed(path: Path) -> tuple[Path, str]:
    for ending in (".bed", ".geno", ".vcf.gz", ".vcf", ".bcf"):
        whole = path.with_name(path.name + ending)
        if whole.is_file():
            return whole, ending
    _checks.fail("file", f"a name that ends in one of {', '.join(_READERS)}", str(path))
