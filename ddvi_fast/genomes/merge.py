"""Merge of the samples of several stores on the variants that they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packed import frequencies
from ddvi_fast.genomes.align import Alignment, align, identity, matched_codes
from ddvi_fast.genomes.convert import new_folder, write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import Block, Source, block_rows
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import SampleTable, chromosome_set

COHORT = "cohort"


def merge_stores(
    stores: Sequence[GenotypeStore], out: str | Path, *, palindromes: str = "auto", filters: Filters = Filters(), overwrite: bool = False
) -> GenotypeStore:
    """Write the store `out` with the samples of several stores, and those variants of the first one that all of them have.

    Variants are matched by identifier, position and alleles (see `align`), of which a warning of class `MatchReport` tells. The name of the
    folder of each sample's store becomes the label ``cohort``; where samples of two stores have one name, it is written before all names.

    Args:
        stores: At least two stores.
        out: Folder of the merged store.
        palindromes: Treatment of variants with the alleles A/T or C/G (see `align`).
        filters: Further filters of the merged variants and samples (default none).
        overwrite: Whether to replace the store `out` (bool, default False).

    Raises:
        InputError: There are fewer than two stores, two have the same folder's name or different numbers of autosomes, or one lacks half of
            the variants of the first one.
    """
    _checks.require(len(stores) >= 2, "stores", "at least two", len(stores))
    cohorts = [store.path.resolve().name for store in stores]
    _checks.require(len(set(cohorts)) == len(cohorts), "stores", "folders of different names", ", ".join(cohorts) + " ")
    first = stores[0]
    species = sorted({store.num_autosomes for store in stores})
    _checks.require(len(species) == 1, "stores", "one number of autosomes", " and ".join(map(str, species)))
    frequency = np.nan_to_num(frequencies(first.counts), nan=0.5)
    found = [identity(first.num_variants)]
    for store in stores[1:]:
        found.append(align(store.variants, first.variants, palindromes=palindromes, have_counts=store.counts, want_frequency=frequency))
        found[-1].tell(argument=str(store.path))
    kept = np.flatnonzero(np.all([each.matched for each in found], axis=0))
    source = Source(Path(" and ".join(str(store.path) for store in stores)), _samples(stores, cohorts), _blocks(stores, found, kept))
    with chromosome_set(first.num_autosomes), new_folder(_checks.path(out, "out").expanduser(), overwrite) as folder:
        write_store(source, folder, filters=filters)
    return GenotypeStore(out)


def _samples(stores: Sequence[GenotypeStore], cohorts: Sequence[str]) -> SampleTable:
    names = [name for store in stores for name in store.samples.name]
    if len(set(names)) < len(names):
        names = [f"{cohort}:{name}" for store, cohort in zip(stores, cohorts, strict=True) for name in store.samples.name]
    columns = dict.fromkeys(column for store in stores for column in store.samples.labels if column != COHORT)
    absent = [np.full(len(store), "", object) for store in stores]
    labels = {
        column: np.concatenate([store.samples.labels.get(column, empty) for store, empty in zip(stores, absent, strict=True)]) for column in columns
    }
    labels[COHORT] = np.repeat(np.array(cohorts, object), [len(store) for store in stores])
    return SampleTable(np.array(names, object), labels)


def _blocks(stores: Sequence[GenotypeStore], found: Sequence[Alignment], kept: np.ndarray) -> Iterator[Block]:
    chosen = [Alignment(each.source[kept], each.swapped[kept], each.counts, each.keys) for each in found]
    step = block_rows(sum(map(len, stores)))
    for start in range(0, len(kept), step):
        count = min(step, len(kept) - start)
        codes = [matched_codes(store, np.arange(len(store)), each, start, count) for store, each in zip(stores, chosen, strict=True)]
        yield Block(stores[0].variants.take(kept[start : start + count]), np.ascontiguousarray(np.concatenate(codes).T))
