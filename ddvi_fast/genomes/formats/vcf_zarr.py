"""Reader of VCF Zarr stores (``.vcz``, ``.zarr``), as bio2zarr and sgkit write them, by zarr. Calls count as in a VCF (see `formats.vcf`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.formats import htslib
from ddvi_fast.genomes.formats.htslib import RefusedFile, Variant
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows
from ddvi_fast.genomes.tables import SampleTable, VariantTable

_ARRAYS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype")
_ABSENT = -2  # second allele of a haploid call


class _Record(NamedTuple):
    """One site, with the names that a record of cyvcf2 has."""

    CHROM: str
    POS: int
    ID: str
    REF: str
    ALT: list[str]
    FILTER: str | None


def open_file(path: Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open a store.

    Raises:
        InputError: The folder is no VCF Zarr store, or its arrays do not fit together.
    """
    zarr = _checks.library("zarr", "zarr")
    try:
        root = zarr.open_group(str(path), mode="r")
        held = {name: root[name] for name in (*_ARRAYS, "variant_id", "variant_filter", "filter_id") if name in root}
    except Exception as error:  # zarr raises many classes
        _checks.fail(str(path), "a VCF Zarr store", f"{type(error).__name__}: {_checks.one_line(error)}")
    lacking = [name for name in _ARRAYS if name not in held]
    _checks.require(not lacking, str(path), "a VCF Zarr store with genotypes", f"one without {', '.join(lacking)}")
    shape, samples = held["call_genotype"].shape, [str(name) for name in held["sample_id"][:]]
    fits = len(shape) == 3 and shape[1] == len(samples) and all(held[name].shape[0] == shape[0] for name in _ARRAYS[2:5])
    _checks.require(fits, str(path), f"genotypes of {held['variant_position'].shape[0]} variants and {len(samples)} samples", f"shape {list(shape)}")
    _checks.require(shape[2] <= 2, str(path), "at most two alleles a call", shape[2])
    notes: Counter[str] = Counter()
    return Source(path, SampleTable.from_names(samples, path), _blocks(held, path, len(samples), multiallelic, passing_only, notes), notes)


def _blocks(held: dict[str, Any], path: Path, num_samples: int, multiallelic: str, passing_only: bool, notes: Counter[str]) -> Iterator[Block]:
    step = max(1, block_rows(num_samples) // 4)  # a call has two alleles of two bytes each
    contigs = [str(name) for name in held["contig_id"][:]]
    for start in range(0, held["variant_position"].shape[0], step):
        try:
            part = slice(start, start + step)
            calls = np.asarray(held["call_genotype"][part], np.int16)
            records = list(_records(held, part, contigs))
        except Exception as error:  # as above
            _checks.fail(str(path), "chunks that can be read", f"{type(error).__name__}: {_checks.one_line(error)}")
        if calls.shape[2] == 1:
            calls = np.concatenate((calls, np.full_like(calls, _ABSENT)), axis=2)
        chosen = [
            Variant((record.CHROM, record.POS, record.ID, record.ALT[number - 1], record.REF), of, number, len(record.ALT),
                    htslib.with_placeholders(record.ALT))
            for record, of in zip(records, calls, strict=True) for number in htslib.chosen_alleles(record, notes, multiallelic, passing_only)
        ]  # fmt: skip
        if not chosen:
            continue
        try:
            codes = htslib.codes_of(chosen, notes)
        except RefusedFile as refused:
            where, expected, got, hint = refused.args
            _checks.fail(f"{path}{where}", expected, got, hint)
        yield Block(VariantTable.from_rows([variant.row for variant in chosen]), codes)


def _records(held: dict[str, Any], part: slice, contigs: list[str]) -> Iterator[_Record]:
    positions, numbers, alleles = (held[name][part] for name in ("variant_position", "variant_contig", "variant_allele"))
    names = held["variant_id"][part] if "variant_id" in held else ["."] * len(positions)
    # A site passes if its filter is PASS, or if it was not filtered.
    failed = np.zeros(len(positions), bool)
    if "variant_filter" in held and "filter_id" in held:
        passing = np.array([str(name) == "PASS" for name in held["filter_id"][:]])
        failed = np.asarray(held["variant_filter"][part])[:, ~passing].any(1)
    for position, number, row, name, bad in zip(positions, numbers, alleles, names, failed, strict=True):
        first, *others = (str(allele) for allele in row)
        yield _Record(
            contigs[number], int(position), str(name) or ".", first, [each for each in others if each not in ("", ".")], "fail" if bad else None
        )
