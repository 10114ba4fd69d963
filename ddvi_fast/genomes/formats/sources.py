"""Opened genotype files as samples and blocks of variants, and the choice of the reader by the name of the file."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
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
    ".pedsnp": "plink", ".pedind": "plink",
    ".pgen": "pgen", ".pvar": "pgen", ".psam": "pgen", ".pvar.zst": "pgen",
    ".geno": "eigenstrat", ".snp": "eigenstrat", ".ind": "eigenstrat", ".geno.gz": "eigenstrat", ".eigenstratgeno": "eigenstrat",
    ".eigenstratgeno.gz": "eigenstrat", ".ancestrymapgeno": "eigenstrat", ".ancestrymapgeno.gz": "eigenstrat",
    ".packedancestrymapgeno": "eigenstrat",
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


# Endings of other formats, and the command that makes one of the formats above.
_CONVERSIONS = {
    ".ped": "plink --file NAME --make-bed", ".map": "plink --file NAME --make-bed", ".tped": "plink --tfile NAME --make-bed",
    ".tfam": "plink --tfile NAME --make-bed", ".bgen": "plink2 --bgen FILE ref-first --sample NAME.sample --make-pgen",
    ".gen": "plink2 --gen FILE ref-first --sample NAME.sample --make-pgen", ".gen.gz": "plink2 --gen FILE ref-first --sample NAME.sample --make-pgen",
    ".haps": "plink2 --haps FILE --make-pgen", ".gds": "SeqArray::seqGDS2VCF", ".vcz": "vcztools view FILE -Oz -o NAME.vcf.gz",
    ".zarr": "vcztools view FILE -Oz -o NAME.vcf.gz", ".hmp.txt": "TASSEL's run_pipeline.pl -h FILE -export NAME -exportType VCF",
    ".ds": "beagle's VCF output", ".txt": "plink --23file FILE --make-bed, for a file of 23andMe", ".trees": "TreeSequence.write_vcf of tskit",
}  # fmt: skip


def open_source(path: str | Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open a PLINK 1 or 2, VCF, BCF or EIGENSOFT file, which the ending of its name tells apart.

    Args:
        path: Any of the three files of PLINK or EIGENSOFT, their common name without an ending, or a VCF or BCF file.
        multiallelic: Treatment of sites of a VCF or .pgen with several alternate alleles: ``"drop"`` (default; they are counted), or ``"split"``
            into a variant for each allele, which counts its copies.
        passing_only: Whether to leave out records of a VCF or .pvar whose FILTER is neither PASS nor empty (bool, default False).

    Raises:
        InputError: No reader is known for the name, a file is missing or damaged, or a library is not installed.
    """
    path = _checks.path(path, "file").expanduser()
    _checks.choice(multiallelic, MULTIALLELIC, "multiallelic")
    ending = ending_of(path)
    if ending is None:
        path, ending = _completed(path)
    reader = importlib.import_module(f"ddvi_fast.genomes.formats.{_READERS[ending]}")
    options = {"multiallelic": multiallelic, "passing_only": passing_only} if _READERS[ending] in ("vcf", "pgen") else {}
    return reader.open_file(path, **options)


def ending_of(path: Path) -> str | None:
    """Longest known ending of the name of a file, or None."""
    return max((ending for ending in _READERS if path.name.lower().endswith(ending)), key=len, default=None)


def siblings(path: Path, endings: Sequence[str | tuple[str, ...]]) -> list[Path]:
    """Files that belong to `path`: its name with each of `endings`, in lower or upper case, or with that and ".gz".

    Args:
        path: One of the files, which is the one of its ending.
        endings: Endings; where there are several for one file, the first that exists.

    Raises:
        InputError: One of the files is missing.
    """
    ending = ending_of(path) or ""
    base = str(path)[: -len(ending)]
    found = []
    for each in endings:
        names = (each,) if isinstance(each, str) else each
        possible = [Path(base + form + packed) for name in names for form in (name, name.upper()) for packed in ("", ".gz")]
        there = path if ending.removesuffix(".gz") in names else next((file for file in possible if file.is_file()), None)
        _checks.require(there is not None, "file", f"{Path(base).name}{names[0]} beside {path.name}", f"no such file in {path.parent}")
        found.append(there)
    return found


def block_rows(num_samples: int) -> int:
    """Number of variants of a block for this number of samples."""
    return max(1, BLOCK_CODES // max(1, num_samples))


def _completed(path: Path) -> tuple[Path, str]:
    for ending in (".bed", ".pgen", ".geno", ".vcf.gz", ".vcf", ".bcf"):
        whole = path.with_name(path.name + ending)
        if whole.is_file():
            return whole, ending
    known = max((ending for ending in _CONVERSIONS if path.name.lower().endswith(ending)), key=len, default="")
    hint = f"convert it: {_CONVERSIONS[known]}" if known else ""
    _checks.fail("file", f"a name that ends in one of {', '.join(_READERS)}", str(path), hint)
