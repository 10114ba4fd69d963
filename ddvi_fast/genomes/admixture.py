"""Ancestry of people as proportions of sources, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files
from ddvi_fast.data.packing import MISSING, PER_BYTE
from ddvi_fast.genomes import admixture_posterior as posteriors
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.sources import Calls, Estimate, allele_counts, fitted, fractions, log_likelihood, log_likelihood_of_samples, shrunk
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.inference import FittedPosterior, ImportanceSample
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.rng import OBSERVATION, Draws, uniform
from ddvi_fast.standardization import tell

_VALUES = 1 << 21  # genotypes of one tile, each of which takes three floats or so; larger ones left gaps in the heap
_KEPT = 1 << 25  # genotypes from which the sources are fitted at first, evenly spaced among the variants
_STEPS, _FREQUENCY_STEPS = 90, 20  # of expectation-maximization: of both, and of the frequencies of all variants
_START = 0.8  # share of the source of its cluster with which a person starts
_FEW = 10.0  # effective samples below which a person is named
_HELD_OUT = 0.05  # fraction of the genotypes that are held out


@dataclass(frozen=True)
class Proportions:
    """Posterior of the proportions of some people.

    Args:
        people: Names of the people, N.
        sources: Names of the sources, K.
        samples: Samples of the posterior, float32 [S, N, K]; each sample of a person sums to 1.
        effective_sample_size: Effective number of the samples of each person, from 1 to S, by Pareto-smoothed weights, float64 [N].
    """

    people: np.ndarray
    sources: tuple[str, ...]
    samples: np.ndarray
    effective_sample_size: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean proportions, float64 [N, K]."""
        return self.samples.mean(0, dtype=np.float64)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the central intervals of probability `level` (float, default 0.9) of each proportion, float64 [N, K].

        Raises:
            InputError: `level` is not between 0 and 1.
        """
        level = _checks.number(level, "level", above=0, below=1)
        lower, upper = np.quantile(self.samples.astype(np.float64), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return lower, upper


class Admixture:
    """Model of people whose genomes come from several sources.

    A person has proportions `q` of K sources, with the prior Dirichlet(concentration, .., concentration), and each allele of a variant is the
    counted one with the probability `sum_k q_k P_k`, independently. The frequencies `P` are fitted: by expectation-maximization, or to people who
    are known to come from one source each. The posterior of each person's proportions is a diffusion posterior in the coordinates of the simplex
    (docs/method.md, section 7), weighted by the binomial likelihood of the person's calls; missing calls are left out. Variants in strong linkage
    disequilibrium count as independent, and intervals are too narrow unless they are pruned (``--max-r2`` of an import).

    Args:
        num_sources: Number of sources, K (int).
        concentration: Concentration of the prior (float, default 1: all proportions are equally probable). Below 1 most people have few sources.
        seed: Seed of all random numbers (int, default 0).

    Attributes (after `fit`):
        sources_: Names of the sources, K: labels in alphabetical order, or ``source1``, .. from the largest total share to the smallest.
        frequencies_: Frequencies of the counted allele in the sources, float32 [K, M].

    Example:
        >>> import tempfile
        >>> from ddvi_fast.genomes.convert import store_from_codes
        >>> codes = uniform(Draws(0), (40, 200), OBSERVATION).lt(0.5).int()
        >>> store = store_from_codes(codes.numpy(), Path(tempfile.mkdtemp()) / "store")
        >>> model = Admixture(1).fit(store)
        >>> model.proportions(store).mean.shape, model.frequencies_.shape
        ((40, 1), (1, 200))
    """

    def __init__(self, num_sources: int, *, concentration: float = 1.0, seed: int = 0) -> None:
        self.num_sources = _checks.integer(num_sources, "num_sources", 1)
        self.concentration, self.seed = _checks.number(concentration, "concentration", above=0), _checks.integer(seed, "seed", 0, 1 << 31)
        self._posterior: FittedPosterior | None = None

    @without_callers_autocast()
    def fit(self, store: GenotypeStore, labels: Sequence[str] | np.ndarray | None = None) -> Admixture:
        """Fit the frequencies of the sources, and the posterior to the people of a store.

        Args:
            store: Store of genotypes.
            labels: Source of each person, N strings, empty where it is unknown (default: all are unknown).

        Raises:
            InputError: There are fewer people than sources, or the labels do not name `num_sources` sources.
        """
        with torch.no_grad():
            # Labelled people are few, and their fractions differ by chance, too; fractions of unlabelled sources are part of the fit.
            estimate = fractions if labels is None else shrunk
            if labels is None:
                self.sources_ = tuple(f"source{number + 1}" for number in range(self.num_sources))
                shares, rows = self._unsupervised(store), np.arange(len(store))
            else:
                self.sources_, shares, rows = self._labelled(store, labels)
            counts = [allele_counts(Calls.of(codes), shares, _FREQUENCY_STEPS, estimate) for codes in _columns(store, rows)]
            frequencies = estimate(*(torch.cat(part, 1) for part in zip(*counts, strict=True)))
        self.frequencies_ = frequencies.numpy()
        self._variants = store.variants
        if self.num_sources > 1:
            self._posterior = posteriors.fit_to(self._summaries(store), self.num_sources, self.concentration, self.seed)
        return self

    @without_callers_autocast()
    @torch.no_grad()
    def proportions(self, store: GenotypeStore, num_samples: int = 400) -> Proportions:
        """Posterior of the proportions of the people of a store.

        Args:
            store: Store with the variants of the fitted one, in the same order.
            num_samples: Number of samples of each person (int, default 400, at least 100).

        Raises:
            InputError: The model is not fitted, or the store has other variants.
        """
        _checks.require(hasattr(self, "frequencies_"), "Admixture", "a fitted model", "one before fit")
        ours, theirs = self._variants, store.variants
        same = len(ours.position) == len(theirs.position) and all(
            bool((getattr(ours, name) == getattr(theirs, name)).all()) for name in ("chromosome", "position", "counted", "other")
        )
        _checks.require(same, "store", f"the {len(ours.position)} variants of the fitted store, in the same order", store)
        num_samples = _checks.integer(num_samples, "num_samples", 100)
        if self._posterior is None:
            alone = np.ones((num_samples, len(store), 1), np.float32)
            return Proportions(store.samples.name, self.sources_, alone, np.full(len(store), float(num_samples)))
        x = self._summaries(store).float()
        drawn = self._posterior.importance_sample(num_samples, x, self.seed)
        exact = self._log_likelihood(store, drawn.z) - self._posterior.model.log_likelihood(x.double(), drawn.z.double())
        ratios = drawn.log_ratios.double() + exact
        weighted = ImportanceSample.of(drawn.z, ratios - ratios.max(0).values)
        sizes = torch.exp(-torch.logsumexp(2 * weighted.log_weights.double(), 0)).numpy()  # of the smoothed weights, which are those used
        if (sizes < _FEW).any():
            tell(f"proportions: fewer than {_FEW:g} effective samples for {(sizes < _FEW).sum()} of {len(sizes)} people; see num_samples")
        return Proportions(store.samples.name, self.sources_, weighted.resample(num_samples, self.seed).numpy(), sizes)

    def _unsupervised(self, store: GenotypeStore) -> Tensor:
        """Proportions [N, K] of the fitted people, the sources in the order of their total shares."""
        codes = _evenly_spaced(store)
        shares, _ = _fitted(store, codes, self.num_sources, self.seed, fractions)
        return shares[:, shares.sum(0).argsort(descending=True, stable=True)]

    def _labelled(self, store: GenotypeStore, labels: Sequence[str] | np.ndarray) -> tuple[tuple[str, ...], Tensor, np.ndarray]:
        """Names of the sources, proportions of the labelled people, and their rows."""
        given = np.array([str(label) for label in labels], object)
        _checks.require(given.shape == (len(store),), "labels", f"{len(store)} labels", f"{len(given)}")
        names = tuple(sorted(set(given) - {""}))
        _checks.require(len(names) == self.num_sources, "labels", f"{self.num_sources} sources", f"{len(names)}: {', '.join(names[:10])}")
        rows = np.flatnonzero(given != "")
        return names, torch.from_numpy((given[rows, None] == np.array(names, object)).astype(np.float32)), rows

    def _summaries(self, store: GenotypeStore) -> Tensor:
        """Summaries of the likelihoods of all people, float64 [N, F]."""
        frequencies = torch.from_numpy(self.frequencies_)
        with torch.no_grad():
            return torch.cat([posteriors.summary(Calls.of(codes), frequencies) for _, codes in _rows(store)])

    def _log_likelihood(self, store: GenotypeStore, samples: Tensor) -> Tensor:
        """Log-likelihoods of samples [S, N, K] of all people, float64 [S, N]."""
        frequencies = torch.from_numpy(self.frequencies_)
        found = torch.empty(samples.shape[:2], dtype=torch.float64, device="cpu")
        for rows, codes in _rows(store):
            found[:, rows] = log_likelihood_of_samples(codes, samples[:, rows], frequencies)
        return found


@without_callers_autocast()
@torch.no_grad()
def held_out_log_likelihood(store: GenotypeStore, num_sources: int, seed: int = 0) -> float:
    """Mean log-likelihood of genotypes that a fit did not see, by which the number of sources is chosen: larger is better.

    A random twentieth of the calls is held out of the fit of the frequencies and proportions. Up to 34 million genotypes, evenly spaced among the
    variants, are used.

    Args:
        store: Store of genotypes.
        num_sources: Number of sources (int).
        seed: Seed of the choice of calls, and of the start (int, default 0). Numbers of sources are compared with the same seed.

    Returns:
        Nats per call.

    Raises:
        InputError: There are fewer people than sources.
    """
    num_sources, codes = _checks.integer(num_sources, "num_sources", 1), _evenly_spaced(store)
    held = uniform(Draws(_checks.integer(seed, "seed", 0, 1 << 31)), tuple(codes.shape), OBSERVATION) < _HELD_OUT
    missing = torch.full_like(codes, MISSING)
    shares, frequencies = _fitted(store, torch.where(held, missing, codes), num_sources, seed, shrunk)
    calls = Calls.of(torch.where(held, codes, missing))
    number = float((calls.counted + calls.other).sum()) / 2
    heterozygous = float((calls.counted == 1).sum()) * float(np.log(2))
    return (float(log_likelihood(calls, shares, frequencies).sum()) + heterozygous) / max(1.0, number)


def matched(proportions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Order of the sources in which proportions [N, K] are nearest to those of a reference [N, K], int64 [K].

    The sources of fits without labels have no names, and two fits may have them in different orders.

    Example:
        >>> one = np.array([[0.9, 0.1, 0.0], [0.2, 0.0, 0.8]])
        >>> matched(one[:, [2, 0, 1]], one).tolist()
        [1, 2, 0]
    """
    from scipy.optimize import linear_sum_assignment

    _checks.require(np.shape(proportions) == np.shape(reference), "reference", f"shape {list(np.shape(proportions))}", list(np.shape(reference)))
    return linear_sum_assignment(np.asarray(reference).T @ np.asarray(proportions), maximize=True)[1]


def write_proportions(folder: str | Path, model: Admixture, found: Proportions, stem: str = "admixture") -> list[Path]:
    """Write proportions and frequencies as ADMIXTURE does, and a table with intervals.

    ``STEM.K.Q`` has a row for each person and ``STEM.K.P`` one for each variant (of frequencies of the counted allele), with K numbers separated
    by spaces. ``STEM.tsv`` has the columns ``name``, ``effective`` (number of samples), and mean and 90% interval of each source.
    """
    folder, lower_upper = _checks.path(folder, "folder"), found.interval()
    names = [f"{stem}.{len(found.sources)}.Q", f"{stem}.{len(found.sources)}.P"]
    for name, values in zip(names, (found.mean, model.frequencies_.T), strict=True):
        _write(folder / name, (" ".join(f"{value:.6f}" for value in row) for row in values))
    heads = [f"{source}{end}" for source in found.sources for end in ("", "_low", "_high")]
    values = np.stack([found.mean, *lower_upper], -1).reshape(len(found.people), -1)
    rows = zip(found.people, found.effective_sample_size, values, strict=True)
    body = ("\t".join([str(name), f"{size:.1f}", *(f"{value:.5f}" for value in row)]) for name, size, row in rows)
    _write(folder / f"{stem}.tsv", ["\t".join(["name", "effective", *heads]), *body])
    return [folder / name for name in (*names, f"{stem}.tsv")]


def _write(path: Path, lines: Iterator[str] | Sequence[str]) -> None:
    with _files.replacing(path) as fresh:
        fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _fitted(store: GenotypeStore, codes: Tensor, num_sources: int, seed: int, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Proportions [N, K] of all people and frequencies [K, m] at the variants of `codes` [N, m], from clusters of principal components."""
    _checks.require(num_sources <= len(store), "num_sources", f"at most {len(store)}, the number of people", num_sources)
    calls = Calls.of(codes)
    shares = torch.full((len(store), num_sources), (1 - _START) / num_sources, dtype=torch.float32, device=codes.device)
    shares[torch.arange(len(store), device=codes.device), _clusters(store, num_sources, seed)] += _START
    frequencies = estimate(*allele_counts(calls, shares, _FREQUENCY_STEPS, estimate))
    return fitted(calls, shares, frequencies, _STEPS, estimate) if num_sources > 1 else (torch.ones_like(shares), frequencies)


def _clusters(store: GenotypeStore, num_sources: int, seed: int) -> Tensor:
    if num_sources == 1:
        return torch.zeros(len(store), dtype=torch.int64, device="cpu")
    from sklearn.cluster import KMeans

    components = min(num_sources - 1, store.num_variants)
    scores = GenotypePCA(components, drop_constant=True, tolerance=0.01, seed=seed).fit_transform(store)
    return torch.from_numpy(KMeans(num_sources, n_init=10, random_state=seed).fit_predict(scores.astype(np.float64))).long()


def _evenly_spaced(store: GenotypeStore) -> Tensor:
    """Codes of all people at as many variants as fit into the memory that the first fit may take, uint8 [N, m]."""
    spacing = -(-len(store) * store.num_variants // _KEPT)
    kept, first = torch.empty(len(store), -(-store.num_variants // spacing), dtype=torch.uint8, device="cpu"), 0
    for codes in _columns(store, np.arange(len(store))):
        part, start = codes[:, -first % spacing :: spacing], -(-first // spacing)
        kept[:, start : start + part.shape[1]] = part
        first += codes.shape[1]
    return kept


def _columns(store: GenotypeStore, rows: np.ndarray) -> Iterator[Tensor]:
    """Codes of some people in tiles of variants, uint8 [N, m]."""
    width = max(PER_BYTE, _VALUES // max(1, len(rows)) // PER_BYTE * PER_BYTE)
    for first in range(0, store.num_variants, width):
        yield torch.from_numpy(np.ascontiguousarray(store.genotypes(rows, first, min(width, store.num_variants - first))))


def _rows(store: GenotypeStore) -> Iterator[tuple[slice, Tensor]]:
    """Slices of people, and their codes at all variants, uint8 [n, M]."""
    height = max(1, _VALUES // store.num_variants)
    for first in range(0, len(store), height):
        rows = slice(first, min(first + height, len(store)))
        yield rows, torch.from_numpy(store.genotypes(rows))
