"""Principal components of the genotypes of a store in a few passes, and projection of new samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files, rng
from ddvi_fast.data.packed import Scaling
from ddvi_fast.data.packing import MISSING, PER_BYTE, pack, packed_width
from ddvi_fast.genomes.align import Alignment, align, identity, matched_codes, require_whole, same_variants
from ddvi_fast.genomes.archive import loading, text_array, texts_of, variant_arrays, variants_of
from ddvi_fast.genomes.krylov import leading_eigenpairs
from ddvi_fast.genomes.projection import least_squares_scores, unshrunk_scores
from ddvi_fast.genomes.standardise import StandardisedRows, total_square
from ddvi_fast.genomes.store import GenotypeStore, count_codes
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.standardization import tell

MISSING_CALLS = ("mean", "least_squares")
NEW = "new"
_NEAR = 0.1  # distance of a sample from the fitted one of its name, relative to its scores, that a repeated genotyping explains
_EQUAL = 1e-3  # that rounding explains
_COLUMNS = 1 << 14  # variants at a time
_ARRAYS = ("mean_", "scale_", "components_", "singular_values_", "explained_variance_", "explained_variance_ratio_")


class GenotypePCA:
    """Principal components of standardized genotypes (see `data.packed.Scaling`) by randomized block Krylov iteration.

    Each pass reads the packed store once with one unpacked tile in memory: 2,500 samples with 1,000,000 variants take the 625 MB of the
    store through the page cache and little else. Allele frequencies are those of the fitted samples.

    Args:
        n_components: Number of components, k (int, default 20).
        oversampling: Number of further columns of the random block (int, default 10); more columns need fewer passes.
        tolerance: Residual of each eigenvector relative to its eigenvalue at which the passes stop (float, default 1e-3).
        max_passes: Largest number of passes (int, default 40); a warning is given if they do not suffice.
        drop_constant: Whether to give constant variants the loading 0 instead of refusing them (bool, default False).
        seed: Seed of the random block (int, default 0).
        device: Device on which tiles are unpacked and multiplied (default the CPU).

    Attributes (after `fit`):
        components_: Loadings, float32 [k, M], with orthonormal rows. The largest loading of each row in absolute value is positive.
        mean_, scale_: Scaling of the variants, float32 [M].
        singular_values_, explained_variance_, explained_variance_ratio_: As in scikit-learn, float64 [k].
        passes_: Number of passes over the store.
        variants_: Variants with which those of new samples are matched.
        scores_, samples_: Scores of the fitted samples, float32 [N, k], and their names.

    Example:
        >>> import tempfile
        >>> from ddvi_fast.genomes.convert import store_from_codes
        >>> codes = rng.words(rng.Draws(0), (60, 200), rng.OBSERVATION) % 3
        >>> store = store_from_codes(codes.numpy(), Path(tempfile.mkdtemp()) / "store")
        >>> pca = GenotypePCA(n_components=2)
        >>> pca.fit_transform(store).shape, pca.transform(store, rows=[3, 5]).shape
        ((60, 2), (2, 2))
    """

    def __init__(
        self, n_components: int = 20, *, oversampling: int = 10, tolerance: float = 1e-3, max_passes: int = 40,
        drop_constant: bool = False, seed: int = 0, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.n_components, self.oversampling = _checks.integer(n_components, "n_components", 1), _checks.integer(oversampling, "oversampling", 0)
        self.tolerance, self.max_passes = _checks.number(tolerance, "tolerance", above=0, below=1), _checks.integer(max_passes, "max_passes", 1)
        self.drop_constant, self.seed = _checks.flag(drop_constant, "drop_constant"), _checks.integer(seed, "seed", 0)
        self.device = _checks.device(device)
        self._matched: tuple[GenotypeStore, str, Alignment] | None = None  # the last store that was projected

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matched": None}

    def fit(self, store: GenotypeStore, rows: np.ndarray | list[int] | None = None) -> GenotypePCA:
        """Fit the samples `rows` (indices, default all) of a store.

        Raises:
            InputError: There are too few samples or variants, or constant variants without `drop_constant`.
        """
        self.fit_transform(store, rows)
        return self

    @without_callers_autocast()
    def fit_transform(self, store: GenotypeStore, rows: np.ndarray | list[int] | None = None) -> np.ndarray:
        """Fit, and return the scores of the fitted samples, float32 [N, k]."""
        chosen = _indices(rows, len(store))
        least = min(len(chosen) - 1, store.num_variants)
        few = f"at most {least}, for {len(chosen)} samples and {store.num_variants} variants"
        _checks.require(self.n_components <= least, "n_components", few, self.n_components)
        counts = store.counts if rows is None else count_codes(store, chosen)
        scaling = self._scaling(store, counts)
        matrix = StandardisedRows(_tile_of(store, chosen), len(chosen), scaling, self.device)
        width = min(self.n_components + self.oversampling, len(chosen))
        start = rng.normal(rng.Draws(self.seed), (len(chosen), width), rng.PCA_START).double().to(self.device)
        found = leading_eigenpairs(matrix.gram_product, start, self.n_components, self.tolerance, self.max_passes)
        if not found.converged:
            tell(f"principal components: residuals are up to {float((found.residuals / found.values).max()):.2g} of the eigenvalue after "
                 f"{found.products} passes, above the tolerance of {self.tolerance:g} (see max_passes)")  # fmt: skip
        return self._keep(store, chosen, scaling, matrix, found.vectors, found.values, found.products, total_square(counts, scaling))

    @without_callers_autocast()
    def transform(
        self,
        store: GenotypeStore,
        rows: np.ndarray | list[int] | None = None,
        missing: str = "least_squares",
        *,
        unshrunk: bool | str = False,
        palindromes: str = "auto",
    ) -> np.ndarray:
        """Scores of samples of any store on the fitted components, with the fitted frequencies, float32 [N, k].

        Variants of another store are matched with the fitted ones by identifier, position and alleles (see `align`), and a warning of class
        `MatchReport` says how many were found, by what, and how they were converted. A fitted variant that the store does not have is a
        missing call.

        Args:
            store: Store of the samples.
            rows: Indices of the samples (default all).
            missing: Treatment of missing calls. ``"least_squares"`` (default) computes the scores that fit the other calls best;
                ``"mean"`` replaces missing calls by the mean, as the fit does, which shrinks a sample with many of them towards the origin.
            unshrunk: Whether to compute for samples that were not fitted the scores they would have if they had been (default False).
                Their projections shrink towards the origin, by half or more on weak components (see `projection.unshrunk_scores`).
                ``"new"`` does so for all but those that were fitted: samples with the same scores, or with the same name and similar ones.
            palindromes: Treatment of variants with the alleles A/T or C/G: ``"auto"`` (default), ``"keep"``, ``"drop"``, ``"frequency"``.

        Raises:
            InputError: Nothing was fitted, the variants in common have less than half of the weight of the fitted ones on some component,
                or an index is out of range.
        """
        self._require_fitted()
        _checks.choice(missing, MISSING_CALLS, "missing")
        _checks.require(isinstance(unshrunk, (bool, np.bool_)) or unshrunk == NEW, "unshrunk", f"True, False or {NEW}", unshrunk)
        chosen = _indices(rows, len(store))
        scaling = Scaling(torch.from_numpy(self.mean_), torch.from_numpy(self.scale_))
        matrix = StandardisedRows(self._matched_tile(store, chosen, palindromes), len(chosen), scaling, self.device)
        loadings = torch.from_numpy(self.components_.T.copy())
        if missing == "mean":
            scores = plain = matrix.product(loadings).float()
            called = torch.ones(len(scores), device=scores.device)
        else:
            scores, plain, called = least_squares_scores(matrix, loadings)
        if not unshrunk:
            return scores.cpu().numpy()
        # Squares of all variants are what the called ones would have been.
        squares = matrix.row_squares() / called.clamp_min(torch.finfo(torch.float64).tiny).to(self.device)
        far = unshrunk_scores(scores, squares, torch.from_numpy(self.singular_values_).to(self.device))
        if unshrunk != NEW:
            return far.cpu().numpy()
        fitted = self._were_fitted(store.samples.name[chosen], scores.cpu(), plain.cpu())
        return torch.where(fitted.unsqueeze(1), scores.cpu(), far.cpu()).numpy()

    def called(self, store: GenotypeStore, rows: np.ndarray | list[int] | None = None) -> np.ndarray:
        """Share of the fitted variants for which each of the samples `rows` (default all) has a call, float64 [N]."""
        self._require_fitted()
        chosen, found = _indices(rows, len(store)), self._match_once(store, "auto")
        total = np.zeros(len(chosen))
        for first in range(0, len(self.mean_), _COLUMNS):
            total += (matched_codes(store, chosen, found, first, min(_COLUMNS, len(self.mean_) - first)) != MISSING).sum(1)
        return total / len(self.mean_)

    def alignment(self, store: GenotypeStore, palindromes: str = "auto") -> Alignment:
        """Alignment of the variants of a store with the fitted ones."""
        self._require_fitted()
        if same_variants(store.variants, self.variants_):
            return identity(store.num_variants)
        return align(store.variants, self.variants_, palindromes=palindromes, have_counts=store.counts, want_frequency=self.mean_ / 2)

    def match(self, store: GenotypeStore, palindromes: str = "auto") -> Alignment:
        """`alignment`, with its report as a warning of class `MatchReport` unless the variants are those that were fitted.

        Raises:
            InputError: The variants in common have less than half of the weight of the fitted ones on some component.
        """
        found = self.alignment(store, palindromes)
        if store.variants is not self.variants_:
            require_whole(store)
        if not same_variants(store.variants, self.variants_):
            found.tell(self.components_**2 * self.explained_variance_[:, None])
        return found

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the fitted components into one NumPy archive; `InputError` if the file exists, unless `overwrite`."""
        self._require_fitted()
        path = Path(path)
        _checks.require(overwrite or not path.exists(), "path", "a new file", str(path), "overwrite=True replaces it")
        arrays = {name: getattr(self, name) for name in (*_ARRAYS, "scores_")}
        with _files.replacing(path) as fresh, fresh.open("wb") as file:
            np.savez(file, passes_=self.passes_, samples_=text_array(self.samples_), **arrays, **variant_arrays(self.variants_))

    @classmethod
    def load(cls, path: str | Path) -> GenotypePCA:
        """Load what `save` wrote; `InputError` if the file is something else."""
        with loading(Path(path), "principal components written by save") as archive:
            arrays = {name: archive[name] for name in (*_ARRAYS, "passes_")}
            variants, known = variants_of(archive), "scores_" in archive  # not in files of earlier versions
            scores = archive["scores_"] if known else np.zeros((0, len(arrays["components_"])), np.float32)
            samples = texts_of(archive["samples_"]) if known else np.zeros(0, object)
        loaded = cls(n_components=len(arrays["components_"]))
        for name, value in arrays.items():
            setattr(loaded, name, value if value.ndim else int(value))
        loaded.variants_, loaded.scores_, loaded.samples_ = variants, scores, samples
        return loaded

    def _scaling(self, store: GenotypeStore, counts: np.ndarray) -> Scaling:
        scaling = Scaling.of(counts)
        constant = np.flatnonzero(scaling.scale.numpy() == 0)
        if len(constant) and (not self.drop_constant or len(constant) == store.num_variants):
            hint = "" if len(constant) == store.num_variants else "drop_constant=True leaves them out"
            got = f"{len(constant)} constant ones of {store.num_variants}, first {store.variants.name[constant[0]]}"
            _checks.fail("genotypes", "variants that vary among these samples", got, hint)
        return scaling

    def _keep(
        self, store: GenotypeStore, rows: np.ndarray, scaling: Scaling, matrix: StandardisedRows, vectors: Tensor, values: Tensor, products: int,
        total: float,
    ) -> np.ndarray:  # fmt: skip
        singular = values.clamp_min(0).sqrt()
        # A component without variance has no direction: its loadings are 0.
        inverse = torch.where(singular > 1e-6 * singular[0], 1 / singular, 0.0)
        loadings = matrix.transposed_product(vectors * inverse)
        largest = loadings.abs().argmax(0)
        signs = torch.sign(loadings.gather(0, largest[None])[0])
        signs = torch.where(signs == 0, 1.0, signs)
        self.components_ = (loadings * signs).mT.contiguous().cpu().numpy()
        self.mean_, self.scale_ = scaling.mean.numpy(), scaling.scale.numpy()
        self.singular_values_ = singular.cpu().numpy()
        self.explained_variance_ = self.singular_values_**2 / (matrix.num_rows - 1)
        self.explained_variance_ratio_ = self.singular_values_**2 / total
        self.passes_, self.variants_, self.samples_ = products + 1, store.variants, store.samples.name[rows]
        self._matched = None
        self.scores_ = (vectors * singular * signs).float().cpu().numpy()
        return self.scores_.copy()

    def _matched_tile(self, store: GenotypeStore, rows: np.ndarray, palindromes: str) -> Callable[[slice, int, int], Tensor]:
        found = self._match_once(store, palindromes)
        if np.array_equal(found.source, np.arange(store.num_variants)) and not found.swapped.any():
            return _tile_of(store, rows)
        return lambda piece, first, count: torch.from_numpy(pack(matched_codes(store, rows[piece], found, first, count)))

    def _match_once(self, store: GenotypeStore, palindromes: str) -> Alignment:
        """The match of a store, which is told once, though rows come in blocks."""
        if self._matched is None or self._matched[0] is not store or self._matched[1] != palindromes:
            self._matched = (store, palindromes, self.match(store, palindromes))
        return self._matched[2]

    def _were_fitted(self, names: np.ndarray, *scores: Tensor) -> Tensor:
        """Mask of the samples that were fitted, bool [N], given their scores in one or more ways."""
        if not len(self.scores_):
            return torch.ones(len(names), dtype=torch.bool, device="cpu")  # components of an earlier version do not tell
        fitted, place = torch.from_numpy(self.scores_), {name: number for number, name in enumerate(self.samples_)}
        named = torch.tensor([place.get(name, -1) for name in names], device="cpu")
        found = torch.zeros(len(names), dtype=torch.bool, device="cpu")
        for each in scores:
            size = each.norm(dim=1)
            found |= (named >= 0) & ((each - fitted[named]).norm(dim=1) <= _NEAR * size)
            found |= torch.cdist(each.double(), fitted.double()).amin(1) <= _EQUAL * size
        return found

    def _require_fitted(self) -> None:
        _checks.require(hasattr(self, "components_"), "GenotypePCA", "a fitted one", "one without components", "call fit first")


def _tile_of(store: GenotypeStore, rows: np.ndarray) -> Callable[[slice, int, int], Tensor]:
    if len(rows) == len(store) and np.array_equal(rows, np.arange(len(store))):
        return store.tile
    return lambda piece, first, count: torch.from_numpy(store.packed[rows[piece], first // PER_BYTE : packed_width(first + count)])


def _indices(rows: np.ndarray | list[int] | None, length: int) -> np.ndarray:
    if rows is None:
        return np.arange(length)
    chosen = np.arange(length)[_checks.rows(rows, length)]
    _checks.require(len(chosen) > 0, "rows", "at least one sample", rows)
    return chosen
