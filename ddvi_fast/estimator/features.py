"""Features: the map from the rows of a matrix, or of a store of genotypes, to the inputs of the model, and its inverse."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.data import Dataset
from ddvi_fast.data.packed import PackedDataset, Scaling, code_counts
from ddvi_fast.data.packing import pack, packed_width
from ddvi_fast.standardization import Columns, listed, tell

_ROUNDING = 1e-6  # relative difference from a constant column that rounding explains
STANDARDISE = ("columns", "matrix", "none")
# The class of features with a file of components; folders of earlier versions name neither.
_COMPONENTS = "ddvi_fast.genomes.features.ComponentFeatures"
EARLIER = ("components.npz",)


@runtime_checkable
class Store(Protocol):
    """Rows kept outside memory that make their own features, such as a `GenotypeStore`."""

    num_variants: int

    def to_features(self, *, binomial: bool, num_components: int, seed: int, missing: str, rows: np.ndarray | None) -> tuple[Features, Dataset]: ...

    def genotypes(self, rows: np.ndarray) -> np.ndarray: ...

    def __len__(self) -> int: ...


@dataclass
class Features:
    """``(x - centre) / scale`` of each column that is kept.

    Args:
        centre, scale: Centre and scale of the columns, float64 [P] each; value of a constant column, and 1.
        counts: Mean and factor of each variant for genotype counts, [2, M]; None for any other matrix.
        kept: Numbers of the columns that are features, int64; None for all of them.
    """

    centre: np.ndarray
    scale: np.ndarray
    counts: np.ndarray | None = None
    kept: np.ndarray | None = None
    of_matrices: ClassVar[bool] = True  # whether rows of a matrix have these features

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.centre if self.kept is None else self.kept)

    @property
    def log_volume(self) -> float:
        """Log-density of a row's features minus log-density of the row as it was measured, nats."""
        return float(np.log(self.scale).sum())

    def of(self, x: np.ndarray) -> Tensor:
        """Features of rows [N, P], float32 [N, `width`]. A warning names the columns that did not vary among the fitted rows and differ here."""
        scaled = (np.asarray(x, np.float64) - self.centre) / self.scale
        if self.kept is not None:
            # Rounding of a constant column is no difference.
            differs = (np.abs(scaled) > _ROUNDING * np.maximum(np.abs(x), np.abs(self.centre))).any(0)
            differs[self.kept] = False
            if differs.any():
                tell(f"X: {listed(torch.from_numpy(differs))} did not vary in the fit and differs from it here; left out of the features")
            scaled = scaled[:, self.kept]
        beyond = np.abs(scaled) > np.finfo(np.float32).max
        _checks.require(not beyond.any(), "X", "values that single precision holds after scaling", f"{int(beyond.sum())} others")
        return torch.from_numpy(scaled.astype(np.float32))

    def of_rows(self, store: Store, rows: np.ndarray, missing: str = "least_squares") -> Tensor:
        """Features of the samples `rows` of a store, float32 [R, P]; NaN where a call is missing."""
        _checks.require(self.counts is not None, "X", "a matrix, as was fitted", "a store")
        wanted = len(self.centre)
        _checks.require(store.num_variants == wanted, "store", f"the {wanted} variants that were fitted", f"{store.num_variants} variants")
        tell("store: the columns of the matrix that was fitted have no names; they are taken for the variants of the store in its order")
        return with_nan(store.genotypes(rows))

    def back(self, x: Tensor) -> np.ndarray:
        """Rows whose features are `x`, float64 [N, P]."""
        features = x.double().cpu().numpy()
        if self.kept is not None:
            features, kept = np.zeros((len(x), len(self.centre))), features
            features[:, self.kept] = kept
        return features * self.scale + self.centre

    def stand_in(self) -> Dataset:
        """A data set of the right shape, from which a model can be built before its weights are loaded."""
        if self.counts is None:
            rows = torch.arange(8 * self.width, dtype=torch.float32, device="cpu").view(8, -1).sin()
            return Dataset("matrix", rows, None, rows, None)
        width = packed_width(self.counts.shape[1])
        rows = (torch.arange(8 * width, device="cpu") * 37 % 256).to(torch.uint8).view(8, width)
        return PackedDataset("genomes", rows, None, rows, None, value_range=(0.0, 2.0), scaling=Scaling(*torch.from_numpy(self.counts)))

    def save(self, folder: Path) -> None:
        """Write whatever is no tensor into `folder`."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save, by name."""
        found = {"features.centre": self.centre, "features.scale": self.scale, "features.counts": self.counts}
        found["features.kept"] = self.kept
        return {name: torch.from_numpy(value) for name, value in found.items() if value is not None}

    @classmethod
    def load(cls, folder: Path, tensors: dict[str, Tensor]) -> Features:
        """The features of these tensors, and of the files that `save` wrote."""
        return cls(**cls._arrays(tensors))

    @staticmethod
    def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
        found = {name: tensors[f"features.{name}"].numpy() for name in ("centre", "scale", "counts", "kept") if f"features.{name}" in tensors}
        width = len(found["centre"]) if "centre" in found and found["centre"].ndim == 1 else 0
        wanted = {"centre": (width,), "scale": (width,), "counts": (2, width), "kept": found["kept"].shape[:1] if "kept" in found else ()}
        fits = width > 0 and "scale" in found and all(value.shape == wanted[name] for name, value in found.items())
        _checks.require(fits, "features", "centre and scale of each column", {name: list(value.shape) for name, value in found.items()})
        inside = "kept" not in found or bool(((found["kept"] >= 0) & (found["kept"] < width)).all())
        _checks.require(inside, "features, kept", f"numbers of columns below {width}", "others")
        return found


def class_name(features: Features) -> str:
    """The full name of the class of `features`, for `load`."""
    return f"{type(features).__module__}.{type(features).__qualname__}"


def load(folder: Path, tensors: dict[str, Tensor], name: str | None) -> Features:
    """Load saved features.

    Args:
        folder: Folder of a saved estimator.
        tensors: Its tensors.
        name: Full name of the class of the features; None in folders of earlier versions.

    Raises:
        InputError: `name` is no class of features of this package.
    """
    if name is None:
        name = _COMPONENTS if (folder / EARLIER[0]).is_file() else f"{__name__}.Features"
    module, _, attribute = name.rpartition(".")
    # The name comes from a file: nothing but this package is imported.
    _checks.require(module.startswith("ddvi_fast."), str(folder), "features of a class of ddvi_fast", name)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        _checks.fail(str(folder), "features of a class of ddvi_fast", name, str(error))
    _checks.require(isinstance(found, type) and issubclass(found, Features), str(folder), "features of a class of ddvi_fast", name)
    return found.load(folder, tensors)


def of_matrix(x: np.ndarray, standardise: str) -> tuple[Features, Dataset]:
    """Features of a matrix [N, P], and the data set of its rows."""
    _checks.choice(standardise, STANDARDISE, "standardise")
    features = Features(np.zeros(x.shape[1]), np.ones(x.shape[1]))
    if standardise != "none":
        columns = Columns.of(torch.from_numpy(np.array(x)), robust=False)
        varies, scale = columns.varies.numpy(), columns.scale.numpy()
        _checks.require(varies.any(), "X", "columns that vary", "constant columns only", 'standardise="none" takes them')
        if standardise == "matrix":
            features = Features(columns.center.numpy(), np.full(len(scale), scale[varies].max()))
        else:
            features = Features(columns.center.numpy(), scale, kept=None if varies.all() else varies.nonzero()[0])
            _tell_of(columns)
    rows = features.of(x)
    return features, Dataset("matrix", rows, None, rows, None)


def _tell_of(columns: Columns) -> None:
    """Warn of columns that are left out, and of those whose standard deviation a few values rule."""
    if not columns.varies.all():
        tell(f"X: {listed(~columns.varies)} without spread, left out of the features")
    if columns.outlying.any():
        advice = "the others are nearly equal in the features; transform it first, for example by numpy.arcsinh or to ranks"
        tell(f"X: a few values rule the standard deviation of {listed(columns.outlying)}; {advice}")


def of_counts(x: np.ndarray) -> tuple[Features, Dataset]:
    """Features of genotype counts [N, M], NaN where a call is missing, and the data set of its rows, packed."""
    codes = np.where(np.isnan(x), 3, x).astype(np.uint8)
    whole = np.array_equal(codes[~np.isnan(x)], x[~np.isnan(x)])
    _checks.require(whole, "X", "whole numbers from 0 to 2 for a binomial likelihood", "others")
    packed, scaling = torch.from_numpy(pack(codes)), Scaling.of(code_counts(codes.T))
    data = PackedDataset("genotypes", packed, None, packed, None, value_range=(0.0, 2.0), scaling=scaling)
    return features_of_counts(data), data


def with_nan(codes: np.ndarray) -> Tensor:
    """Codes as float32 counts, NaN where a call is missing."""
    return torch.from_numpy(np.where(codes == 3, np.float32("nan"), codes.astype(np.float32)))


def features_of_counts(data: PackedDataset) -> Features:
    """Features of a packed data set."""
    width = data.num_dimensions
    return Features(np.zeros(width), np.ones(width), torch.stack((data.scaling.mean, data.scaling.scale)).numpy())
