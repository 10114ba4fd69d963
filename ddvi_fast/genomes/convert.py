"""Conversion of genotype files into a store: read once in blocks, filter, transpose to one row per sample, move into place when complete."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packed import code_counts
from ddvi_fast.data.packing import PER_BYTE, pack, packed_width
from ddvi_fast.genomes import tables
from ddvi_fast.genomes.align import VARIANT_SITES, variant_sites_alone
from ddvi_fast.genomes.filters import Filters, Kept, apply_filters
from ddvi_fast.genomes.formats.sources import Block, Source, open_sources
from ddvi_fast.genomes.labels import LabelTable, attach, read_labels
from ddvi_fast.genomes.staging import Staged
from ddvi_fast.genomes.store import GENOTYPES, GenotypeStore, is_store, write_tables
from ddvi_fast.genomes.tables import HUMAN, SampleTable, VariantTable, chromosome_set
from ddvi_fast.standardization import tell

_STAGING = "variants.tmp"


def import_genotypes(
    file: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    labels: str | Path | None = None,
    leave_out_unlabelled: bool = False,
    filters: Filters = Filters(),
    multiallelic: str = "drop",
    passing_only: bool = False,
    num_autosomes: int = HUMAN,
    overwrite: bool = False,
) -> GenotypeStore:
    """Write the store `out` from a PLINK, VCF, BCF or EIGENSOFT file, or from several of one cohort.

    Memory is bounded by some tens of megabytes and the tables, for any number of genotypes; the disk holds the packed genotypes twice
    during the conversion.

    Args:
        file: Any of the files (see `sources.open_source`); a pattern as ``chr{1..22}.vcf.gz`` or several for files of the same samples.
        out: Folder of the store, which must not exist, or be a store with `overwrite`.
        labels: Table with a row for each sample (see `labels.read_labels`), whose columns are stored (default none).
        leave_out_unlabelled: Whether to leave out samples without a label instead of refusing them (bool, default False).
        filters: Further filters of variants and samples (default none).
        multiallelic, passing_only: Options of VCF files (see `sources.open_source`).
        num_autosomes: Number of autosomes of the species, after which PLINK numbers X, Y, XY and MT (int, default 22).
        overwrite: Whether to replace the store `out` (bool, default False).

    Raises:
        InputError: `out` exists; a file is damaged or does not fit; the filters leave nothing. Then nothing is written or replaced.
    """
    with chromosome_set(num_autosomes), new_folder(Path(out).expanduser(), overwrite) as folder:
        table = None if labels is None else read_labels(labels)
        source = open_sources(file, multiallelic=multiallelic, passing_only=passing_only)
        write_store(source, folder, table, leave_out_unlabelled, filters, {} if labels is None else {"labels": str(labels)})
    return GenotypeStore(out)


def store_or_import(file: str | Path, out: Path, *, multiallelic: str = "drop", num_autosomes: int = HUMAN) -> GenotypeStore:
    """The store `file`, or the store `out` with the genotypes of a file of another format; options are those of `import_genotypes`."""
    path = _checks.path(file, "file").expanduser()
    if path.is_dir() and is_store(path):
        return GenotypeStore(path)
    return import_genotypes(path, out, multiallelic=multiallelic, num_autosomes=num_autosomes)


def store_from_codes(
    codes: np.ndarray, out: str | Path, *, labels: dict[str, Sequence[str]] | None = None, filters: Filters = Filters(), overwrite: bool = False
) -> GenotypeStore:
    """Write a store from genotypes in memory, with generated names and positions.

    Args:
        codes: Numbers of copies of the counted allele, 0, 1 or 2, and 3 for missing calls, [N, M].
        out, overwrite: See `import_genotypes`.
        labels: Columns of N labels by name (default none).
        filters: Filters of variants and samples (default none).

    Raises:
        InputError: Codes have other values, or as for `import_genotypes`.

    Example:
        >>> import tempfile
        >>> store_from_codes(np.array([[0, 1, 3], [2, 2, 0]]), Path(tempfile.mkdtemp()) / "tiny").genotypes().tolist()
        [[0, 1, 3], [2, 2, 0]]
    """
    _checks.require(not np.ma.is_masked(codes), "codes", "values without a mask", "masked ones")
    codes = np.asarray(codes)
    _checks.require(codes.dtype.kind != "c", "codes", "real numbers", f"dtype {codes.dtype}")
    _checks.require(codes.ndim == 2 and codes.size > 0, "codes", "a matrix [samples, variants]", f"an array of shape {list(codes.shape)}")
    _checks.require(bool(np.isin(codes, range(4)).all()), "codes", "whole numbers from 0 to 3", f"others of dtype {codes.dtype}")
    columns = {name: np.array(values, object) for name, values in (labels or {}).items()}
    for name, column in columns.items():
        _checks.require(column.shape == (len(codes),), f"labels[{name}]", f"{len(codes)} labels", f"an array of shape {list(column.shape)}")
    samples = SampleTable(np.array([f"sample{number}" for number in range(len(codes))], object), columns)
    variants = VariantTable.from_rows([("1", number + 1, ".", "C", "A") for number in range(codes.shape[1])])
    blocks = iter([Block(variants, np.ascontiguousarray(codes.T.astype(np.uint8)))])
    with new_folder(Path(out).expanduser(), overwrite) as folder:
        write_store(Source(Path("codes"), samples, blocks), folder, filters=filters)
    return GenotypeStore(out)


@contextmanager
def new_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A context with a folder to fill, which becomes `out` when the block succeeds and is removed otherwise.

    Raises:
        InputError: `out` exists and is not a store that may be replaced, or its parent cannot be written to.
    """
    exists = out.exists() or out.is_symlink()
    _checks.require(overwrite or not exists, "out", "a new folder", str(out), "overwrite (--overwrite) replaces a store")
    _checks.require(not exists or is_store(out), "out", "a new folder, or a store to replace", f"{out}, which is something else")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        _checks.fail("out", "a folder that can be written", f"{out}: {error.strerror}")
    try:
        made = folder / out.name
        made.mkdir()
        yield made
        if exists:
            out.rename(folder / "replaced")
        made.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_store(
    source: Source,
    folder: Path,
    table: LabelTable | None = None,
    leave_out_unlabelled: bool = False,
    filters: Filters = Filters(),
    further: dict[str, Any] | None = None,
) -> None:
    """Write the store of `source` into an empty folder; `further` is added to ``import.json``."""
    samples, found = source.samples, None
    if table is not None:
        samples, found = attach(source.samples, table, leave_out_unlabelled)
    staged = Staged(folder / _STAGING, source)
    kept = Kept(np.arange(len(staged.variants)), np.arange(len(samples)))
    if found is not None and leave_out_unlabelled:
        kept = kept.without("samples without a label", samples=~found)
    kept = apply_filters(staged, filters, kept)
    counts = _transpose(staged, kept, folder / GENOTYPES)
    if variant_sites_alone(counts):
        tell(f"{source.path}: nobody is homozygous for the other allele at any of {len(counts):,} variants: {VARIANT_SITES}")
    imported = {
        "file": str(source.path),
        "num_autosomes": tables.num_autosomes(),
        **(further or {}),
        "read": {"samples": len(samples), "variants": len(staged.variants)},
        "reader": {reason: count for reason, count in source.notes.items() if count},
        "removed": [asdict(step) for step in kept.removed],
    }
    write_tables(folder, samples.take(kept.samples), staged.variants.take(kept.variants), counts, imported)
    (folder / _STAGING).unlink()


def _transpose(staged: Staged, kept: Kept, path: Path) -> np.ndarray:
    """Write the kept genotypes with one row per sample; returns the counts of codes, int32 [M, 4]."""
    everybody = len(kept.samples) == len(staged.samples)
    out = np.memmap(path, np.uint8, "w+", shape=(len(kept.samples), packed_width(len(kept.variants))))
    counts, start = [], 0
    for block in staged.blocks(kept.variants, multiple=PER_BYTE):
        codes = staged.codes(block, None if everybody else kept.samples)
        counts.append(code_counts(codes))
        packed = pack(np.ascontiguousarray(codes.T))
        out[:, start : start + packed.shape[1]] = packed
        start += packed.shape[1]
    out.flush()
    return np.concatenate(counts)
