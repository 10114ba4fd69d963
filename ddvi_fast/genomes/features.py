"""Features of the samples of a store for the estimator `ddvi_fast.DDVI`: principal components, or the counts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.data import Dataset
from ddvi_fast.estimator.features import Features, features_of_counts, with_nan
from ddvi_fast.genomes.align import Alignment, align, identity, matched_codes, require_whole, same_variants
from ddvi_fast.genomes.archive import loading, variant_arrays, variants_of
from ddvi_fast.genomes.dataset import ComponentsDataset, CountsDataset, components_dataset, genotypes_dataset, unit_of
from ddvi_fast.genomes.pca import NEW, GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import VariantTable

_PCA, _VARIANTS = "components.npz", "variants.npz"


@dataclass
class ComponentFeatures(Features):
    """Principal components of genotypes, in units of the standard deviation of the first one; new samples have unshrunk ones."""

    pca: GenotypePCA | None = None
    of_matrices: ClassVar[bool] = False

    def of_rows(self, store: Any, rows: np.ndarray, missing: str = "least_squares") -> Tensor:
        return self.of(self.pca.transform(store, rows=rows, missing=missing, unshrunk=NEW))

    def called(self, store: Any, rows: np.ndarray) -> np.ndarray:
        """Share of the fitted variants for which each of the samples `rows` has a call, float64 [R]."""
        return self.pca.called(store, rows)

    def save(self, folder: Path) -> None:
        self.pca.save(folder / _PCA, overwrite=True)

    @classmethod
    def load(cls, folder: Path, tensors: dict[str, Tensor]) -> ComponentFeatures:
        return cls(**cls._arrays(tensors), pca=GenotypePCA.load(folder / _PCA))


@dataclass
class CountFeatures(Features):
    """Counts of the variants of a store, with which those of other stores are matched."""

    variants: VariantTable | None = None
    _matched: tuple[Any, Alignment] | None = None  # the last store whose rows were read

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matched": None}

    def of_rows(self, store: Any, rows: np.ndarray, missing: str = "least_squares") -> Tensor:
        if self._matched is None or self._matched[0] is not store:
            self._matched = (store, self._match(store))
        return with_nan(matched_codes(store, rows, self._matched[1], 0, len(self.variants)))

    def called(self, store: Any, rows: np.ndarray) -> np.ndarray:
        """Share of the fitted variants for which each of the samples `rows` has a call, float64 [R]."""
        return 1 - self.of_rows(store, rows).isnan().double().mean(1).numpy()

    def _match(self, store: Any) -> Alignment:
        if store.variants is not self.variants:
            require_whole(store)
        if same_variants(store.variants, self.variants):
            return identity(len(self.variants))
        found = align(store.variants, self.variants, have_counts=store.counts, want_frequency=self.counts[0] / 2)
        found.tell()
        return found

    def save(self, folder: Path) -> None:
        with (folder / _VARIANTS).open("wb") as file:
            np.savez(file, **variant_arrays(self.variants))

    @classmethod
    def load(cls, folder: Path, tensors: dict[str, Tensor]) -> CountFeatures:
        with loading(folder / _VARIANTS, "the variants of a saved model") as archive:
            return cls(**cls._arrays(tensors), variants=variants_of(archive))


def features_of_dataset(dataset: Dataset) -> Features:
    """Features of a data set of `genomes.dataset`, with which people of other stores are projected."""
    if isinstance(dataset, ComponentsDataset) and dataset.pca is not None:
        return ComponentFeatures(np.zeros(dataset.num_dimensions), np.full(dataset.num_dimensions, unit_of(dataset.pca)), pca=dataset.pca)
    counts: CountsDataset = _checks.instance(dataset, CountsDataset, "dataset", "genotypes")
    return CountFeatures(**vars(features_of_counts(counts)), variants=counts.variants)


def to_features(
    store: GenotypeStore,
    *,
    binomial: bool,
    num_components: int,
    seed: int,
    missing: str = "least_squares",
    rows: np.ndarray | None = None,
) -> tuple[Features, Dataset]:
    """Features of samples of a store, and their data set.

    Args:
        store: Genotypes of N samples.
        binomial: Whether the features are the counts of the variants, for a binomial likelihood, instead of principal components.
        num_components: Number of principal components.
        seed: Seed of the principal components.
        missing: Treatment of missing calls, see `GenotypePCA.transform`.
        rows: Indices of the samples (default all).
    """
    if binomial:
        packed = genotypes_dataset(store, test_size=0, rows=rows)
        return features_of_dataset(packed), packed
    data, _ = components_dataset(store, n_components=num_components, test_size=0, seed=seed, missing=missing, rows=rows)
    return features_of_dataset(data), data
