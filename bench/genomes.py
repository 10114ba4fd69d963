"""Genotypes as problems: unpacking of 2-bit codes, principal components of a packed store against scikit-learn's, and latents of a fitted estimator.

Genotypes are simulated by the Balding-Nichols model with five populations whose allele frequencies differ, in blocks, so that a million variants
are never in memory at once.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.problem import Problem, Work
from ddvi_fast import DDVI, rng, use_backend
from ddvi_fast.data.packing import packed_width, unpack, unpack_scaled
from ddvi_fast.estimator.inference import draw
from ddvi_fast.genomes.convert import new_folder, write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import Block, Source
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import SampleTable, VariantTable
from ddvi_fast.posteriors import Diffusion

POPULATIONS, DIFFERENTIATION = 5, 0.05
COMPONENTS = 20
QUICK = "pca in 7 passes"
FLOAT = 4  # bytes
_BLOCK = 4096
_RANDOMIZED_PASSES = 7  # passes of scikit-learn's randomized solver for so few components
_CHECKED_ROWS = 64
_FITTED_ROWS = 2504
_ANGLE = 1e-3  # largest distance from 1 of the cosine between a leading component and scikit-learn's


class Unpacking(Problem):
    """Unpacking of N samples at M variants to bytes (``codes``), or to standardized float32 (``scaled``)."""

    def __init__(self, device: torch.device, N: int, M: int, kind: str) -> None:
        super().__init__(device, backward=False)
        words = rng.words(rng.Draws(1), (N, packed_width(M)), rng.OBSERVATION)
        self.packed = (words & 255).to(torch.uint8).to(device)
        self.count, self.kind = M, kind
        self.centre = rng.uniform(rng.Draws(2), (1, M), rng.OBSERVATION)[0].to(device)
        self.out = torch.empty(N, M, device=device) if kind == "scaled" else None
        self.work = Work(bytes=self.packed.numel() + N * M * (1 if kind == "codes" else FLOAT))

    def provider(self, name: str) -> Callable[[], object]:
        plain = name != "ours"

        def call() -> Tensor:
            with use_backend("reference" if plain else "auto"):
                return self._run(self.packed, self.out)

        return call

    def check(self, name: str) -> None:
        rows, places = self.packed[:_CHECKED_ROWS], torch.arange(self.count, device=self.device)
        codes = rows[:, places // 4] // 4 ** (places % 4) % 4
        exact = codes if self.kind == "codes" else torch.where(codes == 3, 0, (codes - self.centre) * (1 + self.centre))
        with use_backend("reference" if name != "ours" else "auto"):
            torch.testing.assert_close(self._run(rows, None), exact.to(torch.uint8 if self.kind == "codes" else torch.float32))

    def _run(self, packed: Tensor, out: Tensor | None) -> Tensor:
        if self.kind == "codes":
            return unpack(packed, self.count)
        return unpack_scaled(packed, self.centre, 1 + self.centre, None, out)


class Components(Problem):
    """Twenty principal components of N samples at M variants, compared with scikit-learn on the dense standardized matrix in float32.

    ``pca`` iterates until every component has converged, like scikit-learn's Lanczos solver. ``pca in 7 passes`` makes as many passes as its
    randomized solver does by default, after which components in a flat spectrum are still far from converged.
    """

    def __init__(self, device: torch.device, N: int, M: int, kind: str) -> None:
        super().__init__(device, backward=False)
        self.passes = _RANDOMIZED_PASSES if kind == QUICK else None
        self._folder = tempfile.TemporaryDirectory(prefix="ddvi_fast_bench_")
        self.store = simulated_store(Path(self._folder.name) / "store", N, M)
        # The store is read at least once; the number of passes depends on the method.
        self.work = Work(bytes=self.store.packed.nbytes)

    def provider(self, name: str) -> Callable[[], object]:
        return self._ours if name == "ours" else self._dense

    def check(self, name: str) -> None:
        if name != "ours" or self.store.packed.nbytes > 1 << 26:
            return  # scikit-learn is what ours is compared with; it cannot run where the dense matrix is too large
        leading = POPULATIONS - 1
        ours, dense = self._ours()[:, :leading], self._dense()[:, :leading]
        cosines = np.abs((ours * dense).sum(0)) / np.linalg.norm(ours, axis=0) / np.linalg.norm(dense, axis=0)
        assert cosines.min() > 1 - _ANGLE, f"components differ from scikit-learn's: cosine {cosines.min():.6f}"

    def _ours(self) -> np.ndarray:
        if self.passes is None:
            return GenotypePCA(COMPONENTS, device=self.device).fit_transform(self.store)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about components that have not converged
            return GenotypePCA(COMPONENTS, max_passes=self.passes, device=self.device).fit_transform(self.store)

    def _dense(self) -> np.ndarray:
        from sklearn.decomposition import PCA

        codes = self.store.genotypes()
        frequency = codes.mean(0, dtype=np.float64) / 2
        scale = np.sqrt(2 * frequency * (1 - frequency))
        dense = ((codes - (2 * frequency).astype(np.float32)) / scale.astype(np.float32)).astype(np.float32)
        return PCA(COMPONENTS, svd_solver="arpack" if self.passes is None else "randomized", random_state=0).fit_transform(dense)


class Mapping(Problem):
    """Latents of N rows of M principal components under a fitted estimator: means of 16 draws for each row."""

    def __init__(self, device: torch.device, N: int, M: int, kind: str) -> None:
        super().__init__(device, backward=False)
        self.rows = rng.normal(rng.Draws(1), (N, M), rng.OBSERVATION).numpy()
        self.model = DDVI(n_clusters=20, epochs=1, device=str(device)).fit(self.rows[:_FITTED_ROWS])
        self.work = Work(flops=2.0 * N * self.model.n_samples * _chain_products(self.model.posterior_))

    def provider(self, name: str) -> Callable[[], object]:
        return lambda: self._latents(self.rows, name)

    def check(self, name: str) -> None:
        rows = self.rows[:_CHECKED_ROWS]
        expected = _means(self.model, torch.from_numpy(rows).to(self.device))
        torch.testing.assert_close(torch.from_numpy(self._latents(rows, name)).double(), expected.cpu(), rtol=1e-4, atol=1e-4)

    def _latents(self, rows: np.ndarray, name: str) -> np.ndarray:
        with use_backend("auto" if name == "ours" else "reference"):
            return self.model.transform(rows)


def _chain_products(posterior: Diffusion) -> int:
    """Multiplications of the denoiser for one draw of one row; those of the encoders, once a row, are negligible."""
    denoiser = posterior.denoiser
    return denoiser.num_steps * sum(part.numel() for part in (denoiser.first, denoiser.hidden, denoiser.last))


def _means(model: DDVI, rows: Tensor) -> Tensor:
    """Means [N, D] of the estimator's draws, in float64."""
    x = torch.from_numpy((rows.double().cpu().numpy() - model.features_.centre) / model.features_.scale).to(rows.device)
    with use_backend("reference"):
        (drawn,) = draw(copy.deepcopy(model.posterior_).double(), iter([x]), model.n_samples, model.seed_, len(x))
    return drawn.sample.z.mean(0)


def simulated_store(path: Path, samples: int, variants: int) -> GenotypeStore:
    """Write a store of the Balding-Nichols model without missing calls and without constant variants."""
    names = SampleTable.from_names([f"s{number}" for number in range(samples)], path)
    with new_folder(path) as folder:
        write_store(Source(path, names, _blocks(samples, variants)), folder, filters=Filters(varying=True))
    return GenotypeStore(path)


def _blocks(samples: int, variants: int) -> Iterator[Block]:
    spread = (1 - DIFFERENTIATION) / DIFFERENTIATION
    group = np.arange(samples) % POPULATIONS
    for start in range(0, variants, _BLOCK):
        count = min(_BLOCK, variants - start)
        generator = np.random.default_rng(start)
        base = generator.uniform(0.05, 0.95, (count, 1))
        frequency = generator.beta(base * spread, (1 - base) * spread, (count, POPULATIONS)).astype(np.float32)[:, group]
        codes = (generator.random((count, samples), np.float32) < frequency).astype(np.uint8)
        codes += generator.random((count, samples), np.float32) < frequency
        rows = [(str(1 + (start + i) * 22 // variants), start + i + 1, ".", "A", "C") for i in range(count)]
        yield Block(VariantTable.from_rows(rows), codes)
