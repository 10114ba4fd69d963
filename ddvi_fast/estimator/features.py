"""What the model sees of a matrix, or of packed genotypes, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.data import Dataset
from ddvi_fast.data.packed import PackedDataset, Scaling, code_counts
from ddvi_fast.data.packing import pack, packed_width
from ddvi_fast.genomes.dataset import components_dataset, genotypes_dataset
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore

STANDARDISE = ("columns", "matrix", "none")
_PCA = "components.npz"


@dataclass
class Features:
    """``(x - centre) / scale`` of each column, float64 [P] both; of genotypes, of their principal components.

    Args:
        centre, scale: of the columns.
        pca: the components fitted to a store; None for a matrix, and for genotypes as they are.
        counts: mean and factor of each variant for genotypes as they are, [2, M]; else None.
    """

    centre: np.ndarray
    scale: np.ndarray
    pca: GenotypePCA | None = None
    counts: np.ndarray | None = None

    @property
    def log_volume(self) -> float:
        """What the density of a row as it was measured is less than that of what the model sees, nats."""
        return float(np.log(self.scale).sum())

    def of(self, x: np.ndarray) -> Tensor:
        """What the model sees of rows [N, P], float32."""
        return torch.from_numpy(((np.asarray(x, np.float64) - self.centre) / self.scale).astype(np.float32))

    def back(self, x: Tensor) -> np.ndarray:
        """The way back, float64 [N, P]."""
        return x.double().cpu().numpy() * self.scale + self.centre

    def of_store(self, store: GenotypeStore, rows: np.ndarray) -> Tensor:
        """What the model sees of some samples of a store."""
        if self.pca is not None:
            return self.of(self.pca.transform(store, rows=rows))
        wanted = len(self.centre)
        _checks.require(store.num_variants == wanted, "store", f"the {wanted} variants that were fitted", f"{store.num_variants} variants")
        codes = store.genotypes(rows).astype(np.float32)
        return torch.from_numpy(np.where(codes == 3, np.float32("nan"), codes))

    def save(self, folder: Path) -> dict[str, Tensor]:
        """Tensors to keep; components go into a file of their own."""
        if self.pca is not None:
            self.pca.save(folder / _PCA, overwrite=True)
        found = {"features.centre": self.centre, "features.scale": self.scale, "features.counts": self.counts}
        return {name: torch.from_numpy(value) for name, value in found.items() if value is not None}

    @classmethod
    def load(cls, folder: Path, tensors: dict[str, Tensor]) -> Features:
        """What `save` kept."""
        arrays = {name: tensors[f"features.{name}"].numpy() for name in ("centre", "scale", "counts") if f"features.{name}" in tensors}
        return cls(**arrays, pca=GenotypePCA.load(folder / _PCA) if (folder / _PCA).is_file() else None)


def of_matrix(x: np.ndarray, standardise: str) -> tuple[Features, Dataset]:
    """Features of a matrix [N, P], and the data set of its rows."""
    _checks.choice(standardise, STANDARDISE, "standardise")
    width = x.shape[1]
    centre, scale = np.zeros(width), np.ones(width)
    if standardise != "none":
        centre = x.mean(0, dtype=np.float64)
        spread = x.std(0, dtype=np.float64) if standardise == "columns" else np.full(width, np.sqrt(x.var(0, dtype=np.float64).max()))
        # A column that does not vary has no unit of its own.
        scale = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(centre)), spread, 1.0)
    features = Features(centre, scale)
    rows = features.of(x)
    return features, Dataset("matrix", rows, None, rows, None)


def of_counts(x: np.ndarray) -> tuple[Features, Dataset]:
    """Features of genotype counts [N, M], NaN where a call is missing, and the data set of its rows, packed."""
    codes = np.where(np.isnan(x), 3, x).astype(np.uint8)
    whole = np.array_equal(codes[~np.isnan(x)], x[~np.isnan(x)])
    _checks.require(whole, "X", "whole numbers from 0 to 2 for a binomial likelihood", "others")
    packed, scaling = torch.from_numpy(pack(codes)), Scaling.of(code_counts(codes.T))
    data = PackedDataset("genotypes", packed, None, packed, None, value_range=(0.0, 2.0), scaling=scaling)
    return _of_counts(data), data


def _of_counts(data: PackedDataset) -> Features:
    width = data.num_dimensions
    return Features(np.zeros(width), np.ones(width), counts=torch.stack((data.scaling.mean, data.scaling.scale)).numpy())


def of_store(store: GenotypeStore, binomial: bool, num_components: int, seed: int) -> tuple[Features, Dataset]:
    """Features of a store, and the data set of its samples: packed genotypes, or principal components in units of the first one's deviation."""
    if binomial:
        packed = genotypes_dataset(store, test_size=0)
        return _of_counts(packed), packed
    data, pca = components_dataset(store, n_components=num_components, test_size=0, seed=seed)
    unit = np.full(num_components, np.sqrt(pca.explained_variance_[0] * (len(store) - 1) / len(store)))
    return Features(np.zeros(num_components), unit, pca), data


def stand_in(features: Features) -> Dataset:
    """A data set of the right shape, from which a model is built before its weights are read."""
    if features.counts is None:
        rows = torch.arange(8 * len(features.centre), dtype=torch.float32).view(8, -1).sin()
        return Dataset("matrix", rows, None, rows, None)
    width = packed_width(features.counts.shape[1])
    rows = (torch.arange(8 * width) * 37 % 256).to(torch.uint8).view(8, width)
    return PackedDataset("genomes", rows, None, rows, None, value_range=(0.0, 2.0), scaling=Scaling(*torch.from_numpy(features.counts)))
