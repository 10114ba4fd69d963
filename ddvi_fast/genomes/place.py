"""Posterior of a person's place on the first two principal components, given only the variants that were called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddvi_fast import _checks
from ddvi_fast.engine import checkpoint
from ddvi_fast.genomes import place_training
from ddvi_fast.genomes.align import Alignment, matched_codes, require_whole
from ddvi_fast.genomes.convert import new_folder
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.place_features import Features, features
from ddvi_fast.genomes.place_reference import Clusters, Panel, Reference, Tiles
from ddvi_fast.genomes.places import Places
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.inference import FittedPosterior
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import tell

FAMILIES = ("diffusion", "gaussian")
_COMPONENTS, _REFERENCE = "components.npz", "reference"
_KIND = "ddvi_fast posterior of places 1"
_ROWS = 512  # people at a time
_LEAST = 20  # people, and variants in common
_FEW = 1000  # people below which some are held out to choose the numbers of steps, and a warning is given


def require_common(found: Alignment) -> None:
    """Raise `InputError` unless a store has at least 20 of the variants of a panel."""
    _checks.require(int(found.matched.sum()) >= _LEAST, "store", f"at least {_LEAST} of the variants of the panel", found.report())


class PlacePosterior:
    """Posterior of the place that a person has with all variants, given those that were called.

    The place are the first two principal components of the fitted people, in units of the standard deviation of the first one. A person's calls
    are read by the loadings of ten components and by the binomial likelihoods of clusters of the fitted people; a diffusion posterior of these
    features is trained by maximum likelihood of the true places of the fitted people, of whom random calls are kept: from 0.5 to 100% of the
    variants, with both alleles or a random one (docs/method.md, section 7). A person without any heterozygous call counts as pseudo-haploid.

    Args:
        num_components: Number of components that are read (int, default 10, at least 2). The place has the first two.
        num_clusters: Number of clusters (int, default 32).
        repeats: Number of random sets of calls of each fitted person (int, default 10).
        steps: Steps of the training of the Gaussian from which the chain starts, and of the chain (int, default 1500). Below 1,000 people they are
            this number, a quarter or a sixteenth of it, with which the places of a sixth of the people, held out, are most probable.
        resolution: Standard deviation of a normal error that is added to the place (float, default 0.01), without which a person with all variants
            would have no density.
        seed: Seed of all random numbers (int, default 0).

    Example:
        >>> import tempfile
        >>> from ddvi_fast import rng
        >>> from ddvi_fast.genomes.convert import store_from_codes
        >>> codes = rng.words(Draws(0), (60, 300), rng.OBSERVATION) % 3
        >>> store = store_from_codes(codes.numpy(), Path(tempfile.mkdtemp()) / "store")
        >>> places = PlacePosterior(repeats=2, steps=20, num_clusters=3).fit(store).posterior(store)
        >>> places.mean.shape, places.sample(7).shape, places.area(0.9).shape
        ((60, 2), (7, 60, 2), (60,))
    """

    def __init__(
        self, *, num_components: int = 10, num_clusters: int = 32, repeats: int = 10, steps: int = 1500, resolution: float = 0.01, seed: int = 0
    ) -> None:
        self.num_components, self.num_clusters = (
            _checks.integer(num_components, "num_components", 2),
            _checks.integer(num_clusters, "num_clusters", 1),
        )
        self.repeats, self.steps = _checks.integer(repeats, "repeats", 1), _checks.integer(steps, "steps", 1)
        self.resolution, self.seed = _checks.number(resolution, "resolution", above=0), _checks.integer(seed, "seed", 0, 1 << 31)
        self._matched: tuple[GenotypeStore, Alignment] | None = None

    @without_callers_autocast()
    def fit(self, store: GenotypeStore, rows: np.ndarray | list[int] | None = None) -> PlacePosterior:
        """Fit the samples `rows` (indices, default all) of a store.

        Raises:
            InputError: There are fewer than 20 samples, or too few variants.
        """
        chosen = np.arange(len(store)) if rows is None else np.arange(len(store))[_checks.rows(rows, len(store))]
        _checks.require(len(chosen) >= _LEAST, "rows", f"at least {_LEAST} samples", len(chosen))
        self.pca_ = GenotypePCA(self.num_components, drop_constant=True, seed=self.seed).fit(store, chosen)
        panel = Panel(store, chosen, self.pca_, self.num_clusters, self.seed)
        with torch.no_grad():
            self.reference_ = panel.reference(torch.ones(len(chosen), dtype=torch.bool, device="cpu"))
            given = place_training.examples(panel, self.repeats, self.seed)
        steps = place_training.Steps(self.steps, self.steps)
        if len(chosen) < _FEW:
            tell(f"rows: {len(chosen)} people are few to train a posterior of places; below {_FEW} its regions may be too small")
            steps = place_training.chosen_steps(given, self.steps, self.resolution, self.seed)
        self.fitted_ = place_training.fit(given, steps, self.seed)
        self._matched = None
        return self

    @without_callers_autocast()
    @torch.no_grad()
    def posterior(
        self, store: GenotypeStore, rows: np.ndarray | list[int] | None = None, *, num_paths: int = 500, family: str = "diffusion"
    ) -> Places:
        """Posterior of the places of the samples `rows` (default all) of any store.

        Variants are matched with the fitted ones by identifier, position and alleles, as `GenotypePCA.transform` does. Those that the store does
        not have are missing calls.

        Args:
            store: Store of the samples.
            rows: Indices of the samples (default all).
            num_paths: Number of paths of the chain, of which the density is a mean (int, default 500).
            family: ``diffusion`` (default), or ``gaussian`` for the Gaussian from which the chain starts.

        Raises:
            InputError: Nothing was fitted, an index is out of range, or fewer than 20 variants are in common.
        """
        _checks.require(hasattr(self, "fitted_"), "PlacePosterior", "a fitted one", "one before fit")
        chosen = np.arange(len(store)) if rows is None else np.arange(len(store))[_checks.rows(rows, len(store))]
        _checks.require(len(chosen) > 0, "rows", "at least one sample", rows)
        read, called = self._read(store, chosen)
        return self.places(store.samples.name[chosen], read, called, num_paths, family)

    def sample(self, store: GenotypeStore, num_samples: int = 400, rows: np.ndarray | list[int] | None = None) -> np.ndarray:
        """Samples of the places of the samples `rows` of a store, float64 [num_samples, N, 2]; see `posterior`."""
        return self.posterior(store, rows).sample(num_samples, self.seed)

    def places(self, names: np.ndarray, read: Features, called: torch.Tensor, num_paths: int, family: str = "diffusion") -> Places:
        """Posterior of the places of people of whom features and numbers of calls [N] are known; the other arguments are those of `posterior`."""
        paths = 0 if _checks.choice(family, FAMILIES, "family") == "gaussian" else _checks.integer(num_paths, "num_paths", 1)
        draws = Draws(self.seed).lane("calibration")
        found = place_training.conditional(self.fitted_, read, paths, self.resolution, draws)
        return Places(names, found.centres, found.factor, called, found.wide)

    def _read(self, store: GenotypeStore, rows: np.ndarray) -> tuple[Features, torch.Tensor]:
        """Features of some people, and their numbers of calls."""
        found = self._match(store)
        parts, called = [], []
        for part in np.array_split(rows, -(-len(rows) // _ROWS)):
            summary = self.reference_.summarize(_matched_tiles(store, part, found), len(part))
            parts.append(features(self.reference_, summary))
            called.append(summary.called)
        return Features(*(torch.cat(values) for values in zip(*parts, strict=True))), torch.cat(called)

    def _match(self, store: GenotypeStore) -> Alignment:
        if self._matched is None or self._matched[0] is not store:
            found = self.pca_.alignment(store)
            if store.variants is not self.pca_.variants_:
                require_whole(store)
            require_common(found)
            self._matched = (store, found)
        return self._matched[1]

    @staticmethod
    def is_saved(path: str | Path) -> bool:
        """Whether `path` is a folder that `save` wrote."""
        return (Path(path) / _COMPONENTS).is_file() and (Path(path) / _REFERENCE).is_dir()

    def save(self, path: str | Path) -> Path:
        """Write the posterior to a folder; `InputError` if it exists."""
        _checks.require(hasattr(self, "fitted_"), "PlacePosterior", "a fitted one", "one before fit")
        path, reference = _checks.path(path), self.reference_
        tensors = {name: getattr(reference, name) for name in _TENSORS} | reference.clusters._asdict()
        settings = {name: getattr(self, name) for name in _SETTINGS}
        state = {"kind": _KIND, "settings": settings, **{name: getattr(reference, name) for name in _NUMBERS}}
        with new_folder(path) as folder:
            self.pca_.save(folder / _COMPONENTS)
            checkpoint.save(folder / _REFERENCE, tensors, state)
            for name, fitted in self.fitted_._asdict().items():
                fitted.save(folder / name)
        return path

    @classmethod
    def load(cls, path: str | Path) -> PlacePosterior:
        """Load what `save` wrote; `InputError` if the folder is something else."""
        tensors, state = checkpoint.load((path := _checks.path(path)) / _REFERENCE)
        _checks.require(state.get("kind") == _KIND, "path", "a posterior written by PlacePosterior.save", str(path))
        loaded = cls(**state["settings"])
        loaded.pca_ = GenotypePCA.load(path / _COMPONENTS)
        clusters = Clusters(*(tensors[name] for name in Clusters._fields))
        numbers = {name: state[name] for name in _NUMBERS}
        loaded.reference_ = Reference(**{name: tensors[name] for name in _TENSORS}, **numbers, clusters=clusters)
        names = place_training.Fitted._fields
        loaded.fitted_ = place_training.Fitted(*(FittedPosterior.load(path / name) for name in names))
        return loaded


_TENSORS = ("mean", "scale", "loadings", "frequencies", "variances")
_NUMBERS = ("noise", "reading", "unit")
_SETTINGS = ("num_components", "num_clusters", "repeats", "steps", "resolution", "seed")


def _matched_tiles(store: GenotypeStore, rows: np.ndarray, found: Alignment) -> Tiles:
    return lambda first, count: torch.from_numpy(matched_codes(store, rows, found, first, count))
