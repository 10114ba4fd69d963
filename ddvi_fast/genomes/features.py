"""Features of the samples of a store for the estimator `ddvi_fast.DDVI`: principal components, or the counts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ddvi_fast.data import Dataset
from ddvi_fast.estimator.features import Features, features_of_counts
from ddvi_fast.genomes.dataset import components_dataset, genotypes_dataset
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore

_PCA = "components.npz"


@dataclass
class ComponentFeatures(Features):
    """Principal components of genotypes, in units of the standard deviation of the first one."""

    pca: GenotypePCA | None = None
    of_matrices: ClassVar[bool] = False

    def of_rows(self, store: Any, rows: np.ndarray) -> Tensor:
        return self.of(self.pca.transform(store, rows=rows))

    def save(self, folder: Path) -> None:
        self.pca.save(folder / _PCA, overwrite=True)

    @classmethod
    def load(cls, folder: Path, tensors: dict[str, Tensor]) -> ComponentFeatures:
        return cls(**cls._arrays(tensors), pca=GenotypePCA.load(folder / _PCA))


def to_features(store: GenotypeStore, *, binomial: bool, num_components: int, seed: int) -> tuple[Features, Dataset]:
    """Features of a store, and the data set of all its samples.

    Args:
        store: Genotypes of N samples.
        binomial: Whether the features are the counts of the variants, for a binomial likelihood, instead of principal components.
        num_components: Number of principal components.
        seed: Seed of the principal components.
    """
    if binomial:
        packed = genotypes_dataset(store, test_size=0)
        return features_of_counts(packed), packed
    data, pca = components_dataset(store, n_components=num_components, test_size=0, seed=seed)
    unit = np.full(num_components, np.sqrt(pca.explained_variance_[0] * (len(store) - 1) / len(store)))
    return ComponentFeatures(np.zeros(num_components), unit, pca=pca), data
