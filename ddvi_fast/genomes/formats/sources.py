"""Opened genotype files as samples and blocks of variants, and the choice of the reader by the name of the file."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.tables import UNKNOWN_CHROMOSOMES, SampleTable, VariantTable, require_file
from ddvi_fast.standardization import tell

# Number of codes of one block, which are in memory at a time.
BLOCK_CODES = 1 << 22

_BRACES, _RANGE = re.compile(r"\{([^{}]*)\}"), re.compile(r"(\d+)\.\.(\d+)")
MULTIALLELIC = ("drop", "split")
_READERS = {
    ".bed": "plink", ".bim": "plink", ".fam": "plink",
    ".vcf": "vcf", ".vcf.gz": "vcf", ".vcf.bgz": "vcf", ".bcf": "vcf",
    ".pedsnp": "plink", ".pedind": "plink",
    ".vcz": "vcf_zarr", ".zarr": "vcf_zarr",
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
_OXFORD = "plink2 --gen FILE ref-first --sample NAME.sample --make-pgen"
_HAPLOTYPES = "plink2 --haps FILE ref-first --sample NAME.sample --make-pgen"
_CONVERSIONS = {
    ".ped": "plink --file NAME --make-bed", ".map": "plink --file NAME --make-bed", ".tped": "plink --tfile NAME --make-bed",
    ".tfam": "plink --tfile NAME --make-bed", ".bgen": "plink2 --bgen FILE ref-first --sample NAME.sample --make-pgen",
    ".gen": _OXFORD, ".gen.gz": _OXFORD, ".haps": _HAPLOTYPES, ".haps.gz": _HAPLOTYPES, ".gds": "SeqArray::seqGDS2VCF",
    ".hmp.txt": "TASSEL's run_pipeline.pl -h FILE -export NAME -exportType VCF",
    ".txt": "plink --23file FILE --make-bed, for a file of 23andMe", ".trees": "tskit vcf FILE > NAME.vcf",
}  # fmt: skip


def open_sources(files: str | Path | Sequence[str | Path], *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open one file or several of one cohort, such as one for each chromosome, whose variants follow each other.

    Args:
        files: A file, a pattern as ``chr{1..22}.vcf.gz``, or several of either.
        multiallelic, passing_only: See `open_source`.

    Raises:
        InputError: As for `open_source`; or the files do not have the same samples. Samples may be in any order.
    """
    options = {"multiallelic": multiallelic, "passing_only": passing_only}
    given = [files] if isinstance(files, (str, Path)) else list(files)
    whole_names = [str(_checks.path(each, "file").expanduser()) for each in given]
    paths = [Path(name) for each in whole_names for name in ([each] if Path(each).exists() else expanded(each))]
    _checks.require(len(paths) > 0, "file", "at least one file", "none")
    resolved = [path.resolve() for path in paths]
    twice = next((path for path in resolved if resolved.count(path) > 1), None)
    _checks.require(twice is None, "file", "files that differ", f"{twice} twice")
    first = open_source(paths[0], **options)
    if len(paths) == 1:
        return first
    notes: Counter[str] = Counter()
    whole = Path(f"{paths[0]} and {len(paths) - 1} others")
    return Source(whole, first.samples, _chained(first, paths[1:], options, notes), notes)


def expanded(pattern: str) -> list[str]:
    """Names that a pattern with braces stands for.

    Example:
        >>> expanded("chr{1..3,X}.vcf")
        ['chr1.vcf', 'chr2.vcf', 'chr3.vcf', 'chrX.vcf']
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    words = []
    for part in found[1].split(","):
        ends = _RANGE.fullmatch(part)
        words += [part] if ends is None else [str(number) for number in range(int(ends[1]), int(ends[2]) + 1)]
    return [name for word in words for name in expanded(pattern[: found.start()] + word + pattern[found.end() :])]


def _chained(first: Source, further: list[Path], options: dict[str, Any], notes: Counter[str]) -> Iterator[Block]:
    """Blocks of several files with the samples of the first one; each is opened when the one before is read."""
    place, seen = {name: number for number, name in enumerate(first.samples.name)}, _Reach()
    for block in first.blocks:
        seen.add(first.path, block.variants)
        yield block
    notes.update(first.notes)
    for path in further:
        source = open_source(path, **options)
        order = np.array([place.get(name, -1) for name in source.samples.name])
        lacking = len(set(first.samples.name) - set(source.samples.name))
        same = lacking == 0 and bool((order >= 0).all())
        got = f"{int((order < 0).sum())} others, and {lacking} missing"
        _checks.require(same, str(path), f"the {len(place)} samples of {first.path}", got, "bcftools merge joins files of different samples")
        back = np.argsort(order)
        for block in source.blocks:
            seen.add(path, block.variants)
            yield Block(block.variants, np.ascontiguousarray(block.codes[:, back]))
        notes.update(source.notes)


class _Reach:
    """Positions of each chromosome in each of several files; a warning tells of the first two that overlap."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[Path, tuple[int, int]]] = {}
        self._told = False

    def add(self, path: Path, variants: VariantTable) -> None:
        for chromosome in dict.fromkeys(variants.chromosome):
            places = variants.position[variants.chromosome == chromosome]
            ends = self._ends.setdefault(chromosome, {})
            low, high = ends.get(path, (places.min(), places.max()))
            ends[path] = (min(low, places.min()), max(high, places.max()))
            for other, (start, stop) in ends.items():
                if other != path and start <= ends[path][1] and ends[path][0] <= stop and not self._told and chromosome not in UNKNOWN_CHROMOSOMES:
                    self._told = True
                    tell(f"file: {other} and {path} overlap on chromosome {chromosome}; unique (--unique) keeps one of the variants that both have")


def open_source(path: str | Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open a PLINK 1 or 2, VCF, BCF, VCF Zarr or EIGENSOFT file, which the ending of its name tells apart.

    Args:
        path: Any of the three files of PLINK or EIGENSOFT, their common name without an ending, or a VCF or BCF file.
        multiallelic: Treatment of sites of a VCF or .pgen with several alternate alleles: ``"drop"`` (default; they are counted), or ``"split"``
            into a variant for each allele, which counts its copies.
        passing_only: Whether to leave out records of a VCF or .pvar whose FILTER is neither PASS nor empty (bool, default False).

    Raises:
        InputError: No reader is known for the name, a file is missing or damaged, or a library is not installed.
    """
    _checks.choice(multiallelic, MULTIALLELIC, "multiallelic")
    path, ending = located(path)
    reader = importlib.import_module(f"ddvi_fast.genomes.formats.{_READERS[ending]}")
    options = {"multiallelic": multiallelic, "passing_only": passing_only} if _READERS[ending] in ("vcf", "vcf_zarr", "pgen") else {}
    return reader.open_file(path, **options)


def located(path: str | Path) -> tuple[Path, str]:
    """A genotype file, whose name may lack its ending, and that ending.

    Raises:
        InputError: No reader is known for the name, or the file is missing.
    """
    path = _checks.path(path, "file").expanduser()
    ending = ending_of(path)
    if ending is None:
        return _completed(path)
    if _READERS[ending] == "vcf_zarr":
        _checks.require(path.is_dir(), "file", "an existing VCF Zarr folder", f"{path}, which is {'a file' if path.is_file() else 'missing'}")
    else:
        require_file(path)
    return path, ending


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
