"""Filters of variants and samples in a fixed order, with the number that each removes.

The order is: lists of samples, lists of variants and regions, variants not on an autosome, duplicates, variants with few calls, samples with
few calls (among the remaining variants), variants out of Hardy-Weinberg proportions, constant and rare ones (among the remaining samples), and
last variants in linkage disequilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.data.packed import frequencies
from ddvi_fast.genomes.hardy_weinberg import exact_test, expected_heterozygotes
from ddvi_fast.genomes.linkage import prune
from ddvi_fast.genomes.selection import inside, people_of, region_of, variants_of
from ddvi_fast.genomes.staging import Staged
from ddvi_fast.genomes.tables import UNKNOWN_CHROMOSOMES, VariantTable

_WORDS = {"keep": "not in", "remove": "in", "extract": "not in", "exclude": "in"}


@dataclass(frozen=True)
class Filters:
    """Filters of variants and samples. By default nothing is removed.

    Args:
        keep, remove: Files of the people to keep alone, and to leave out: a family and an individual a line, or the individual alone
            (see `selection.people_of`).
        extract, exclude: Files of the identifiers of the variants to keep alone, and to leave out.
        regions, exclude_regions: Regions to keep alone, and to leave out, as ``("6", "2:135,000,000-137,000,000")``; both ends belong to it.
        autosomes: Whether to keep only autosomes, for humans chromosomes 1 to 22.
        unique: Whether to keep only the first of the variants with the same position and pair of alleles, whichever is counted.
        max_missing: Largest fraction of missing calls of a variant (default 1).
        max_sample_missing: Largest fraction of missing calls of a sample (default 1).
        hardy_weinberg: Smallest p-value of the exact test of Hardy-Weinberg proportions (default 0) of an autosomal variant, among all samples
            that are left. Differences between populations alone give small ones.
        keep_few_heterozygotes: Whether `hardy_weinberg` keeps variants with fewer heterozygotes than expected, as populations cause them.
        min_frequency: Smallest frequency of the rarer allele of a variant (default 0); above 0 constant variants are removed, too.
        varying: Whether to remove constant variants, and those without a call.
        max_correlation: Largest squared correlation of two variants in a window (default 1); of a pair above it the rarer is removed.
        window, step: Length of the windows and distance between their starts, in variants of one chromosome (default 200 and 50).

    Raises:
        InputError: A value is out of range.

    Example:
        >>> Filters(autosomes=True, min_frequency=0.01).min_frequency
        0.01
    """

    keep: str | Path | None = None
    remove: str | Path | None = None
    extract: str | Path | None = None
    exclude: str | Path | None = None
    regions: tuple[str, ...] = ()
    exclude_regions: tuple[str, ...] = ()
    autosomes: bool = False
    unique: bool = False
    max_missing: float | None = None
    max_sample_missing: float | None = None
    hardy_weinberg: float | None = None
    keep_few_heterozygotes: bool = False
    min_frequency: float | None = None
    varying: bool = False
    max_correlation: float | None = None
    window: int = 200
    step: int = 50

    def __post_init__(self) -> None:
        for name in ("regions", "exclude_regions"):
            listed = _checks.instance(getattr(self, name), (tuple, list), name, "a tuple of regions")
            for region in listed:
                region_of(region)
            object.__setattr__(self, name, tuple(listed))
        tops = {"max_missing": 1.0, "max_sample_missing": 1.0, "hardy_weinberg": 1.0, "min_frequency": 0.5, "max_correlation": 1.0}
        for name, top in tops.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _checks.number(getattr(self, name), name, at_least=0, at_most=top))
        for name in ("autosomes", "unique", "keep_few_heterozygotes", "varying"):
            object.__setattr__(self, name, _checks.flag(getattr(self, name), name))
        for name in ("window", "step"):
            object.__setattr__(self, name, _checks.integer(getattr(self, name), name, 1))
        _checks.require(self.step <= self.window, "step", f"from 1 to the window, {self.window}", self.step)


@dataclass(frozen=True)
class Removed:
    """Number of variants and samples that one filter removed."""

    reason: str
    variants: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Kept:
    """Indices of the kept variants and samples, and the numbers that the filters removed, in their order."""

    variants: np.ndarray
    samples: np.ndarray
    removed: tuple[Removed, ...] = ()

    def without(self, reason: str, variants: np.ndarray | None = None, samples: np.ndarray | None = None) -> Kept:
        """Remove the variants and samples where a mask is True.

        Raises:
            InputError: Nothing is left.
        """
        bad_variants = np.zeros(len(self.variants), bool) if variants is None else variants
        bad_samples = np.zeros(len(self.samples), bool) if samples is None else samples
        removed = Removed(reason, int(bad_variants.sum()), int(bad_samples.sum()))
        kept = Kept(self.variants[~bad_variants], self.samples[~bad_samples], (*self.removed, removed))
        story = "; ".join(f"{step.reason}: {step.variants or step.samples}" for step in kept.removed)
        _checks.require(len(kept.variants) > 0, "filters", "at least one variant left", "none", story)
        _checks.require(len(kept.samples) > 0, "filters", "at least one sample left", "none", story)
        return kept


def apply_filters(staged: Staged, filters: Filters, kept: Kept) -> Kept:
    """Apply `filters` to the variants and samples kept so far.

    Raises:
        InputError: Nothing is left; the message says how many each filter removed.
    """
    kept = _listed(staged, filters, kept)
    if filters.autosomes:
        kept = kept.without("not on an autosome", variants=~staged.variants.take(kept.variants).autosomal())
    if filters.unique:
        kept = kept.without("duplicates", variants=_repeated(staged.variants.take(kept.variants)))
    if filters.max_missing is not None:
        missing = staged.counts(kept.variants, kept.samples)[:, 3]
        reason = f"variants missing in more than {filters.max_missing:g} of samples"
        kept = kept.without(reason, variants=missing > filters.max_missing * len(kept.samples))
    if filters.max_sample_missing is not None:
        missing = staged.missing_of_samples(kept.variants)[kept.samples]
        reason = f"samples missing more than {filters.max_sample_missing:g} of variants"
        kept = kept.without(reason, samples=missing > filters.max_sample_missing * len(kept.variants))
    if filters.hardy_weinberg:
        kept = kept.without(f"Hardy-Weinberg p-value below {filters.hardy_weinberg:g}", variants=_unbalanced(staged, filters, kept))
    if filters.varying or filters.min_frequency or filters.max_correlation is not None:
        kept = _by_frequency(staged, filters, kept)
    return kept


def _listed(staged: Staged, filters: Filters, kept: Kept) -> Kept:
    """Apply lists of samples and variants, and regions."""
    for name, path in (("keep", filters.keep), ("remove", filters.remove)):
        if path is not None:
            listed = people_of(path, staged.samples)[kept.samples]
            kept = kept.without(f"samples {_WORDS[name]} {path}", samples=listed if name == "remove" else ~listed)
    for name, path in (("extract", filters.extract), ("exclude", filters.exclude)):
        if path is not None:
            listed = variants_of(path, staged.variants.take(kept.variants))
            kept = kept.without(f"variants {_WORDS[name]} {path}", variants=listed if name == "exclude" else ~listed)
    for name, regions in (("extract", filters.regions), ("exclude", filters.exclude_regions)):
        if regions:
            listed = inside(regions, staged.variants.take(kept.variants))
            kept = kept.without(f"variants {_WORDS[name]} {', '.join(regions)}", variants=listed if name == "exclude" else ~listed)
    return kept


def _unbalanced(staged: Staged, filters: Filters, kept: Kept) -> np.ndarray:
    """Mask of the autosomal variants out of Hardy-Weinberg proportions."""
    counts = staged.counts(kept.variants, kept.samples)
    mask = (exact_test(counts) < filters.hardy_weinberg) & staged.variants.take(kept.variants).autosomal()
    return mask & (counts[:, 1] > expected_heterozygotes(counts)) if filters.keep_few_heterozygotes else mask


def _by_frequency(staged: Staged, filters: Filters, kept: Kept) -> Kept:
    frequency = frequencies(staged.counts(kept.variants, kept.samples))
    minor = np.nan_to_num(np.minimum(frequency, 1 - frequency))
    if filters.varying or filters.min_frequency:
        constant = minor == 0
        kept, minor = kept.without("constant", variants=constant), minor[~constant]
    if filters.min_frequency:
        rare = minor < filters.min_frequency
        kept, minor = kept.without(f"minor allele rarer than {filters.min_frequency:g}", variants=rare), minor[~rare]
    if filters.max_correlation is not None:
        linked = prune(staged, kept.variants, kept.samples, minor, filters.max_correlation, filters.window, filters.step)
        kept = kept.without(f"squared correlation above {filters.max_correlation:g} in a window", variants=linked)
    return kept


def _repeated(variants: VariantTable) -> np.ndarray:
    """Mask of the variants that repeat an earlier one."""
    seen: set[tuple] = set()
    mask = np.zeros(len(variants), bool)
    columns = zip(variants.chromosome, variants.position.tolist(), variants.counted, variants.other, strict=True)
    for place, (chromosome, position, counted, other) in enumerate(columns):
        if position <= 0 or chromosome in UNKNOWN_CHROMOSOMES:
            continue  # an unknown position is none
        key = (chromosome, position, *sorted((counted.upper(), other.upper())))
        mask[place] = key in seen
        seen.add(key)
    return mask
