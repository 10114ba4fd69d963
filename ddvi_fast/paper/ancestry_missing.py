"""The table `ddvi-fast reproduce ancestry-missing`: places of people of whom few variants are called, by five-fold cross-fitting.

Each fold of the people is tested once: components and posteriors are fitted to three of the others, and whatever scales a region to the fourth.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files, rng
from ddvi_fast.data import folder_of
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.genomes.dataset import Genotypes, store_of
from ddvi_fast.genomes.place import PlacePosterior
from ddvi_fast.genomes.place_features import features, least_squares
from ddvi_fast.genomes.place_reference import Summary, tiles_of
from ddvi_fast.genomes.place_training import thinned_tiles
from ddvi_fast.genomes.places import Places
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.paper import ancestry_missing_table, record_files
from ddvi_fast.paper.ancestry_missing_table import LEVELS, POSTERIORS, markdown
from ddvi_fast.paper.study_settings import digest, read
from ddvi_fast.rng import Draws

NAME = "ancestry-missing"
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
_COMPONENTS = (2, 4, 10)  # of the least-squares scores, of which the validation people choose
_SCALES = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)  # of their error
_ROWS = 512  # people at a time
_PLACES = 4 * len(SHARES)  # of the random numbers of a fold: validation and test people with each share of calls and number of alleles


@dataclass(frozen=True)
class Settings:
    """Settings of the table.

    Args:
        dataset: Data set of genotypes, ``1kg`` (default) or ``genomes``.
        folds: Number of parts of the people (default 5, at least 3).
        people: Number of people, the first ones of a random order; 0 (default) for all.
        clusters, repeats, steps, resolution: See `PlacePosterior`.
        paths: Paths of the chain (default 300).
        samples: Samples by which a credibility and an area are estimated (default 200).
        validations: Random sets of calls of each validation person (default 2).
        seed: Seed of the folds, the calls and the training (default 0).
    """

    dataset: str = "1kg"
    folds: int = 5
    people: int = 0
    clusters: int = 32
    repeats: int = 10
    steps: int = 1500
    resolution: float = 0.01
    paths: int = 300
    samples: int = 200
    validations: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.choice(self.dataset, ("1kg", "genomes"), "dataset")
        _checks.at_least(3, folds=self.folds)
        _checks.at_least(0, people=self.people, seed=self.seed)
        _checks.at_least(1, **{name: getattr(self, name) for name in ("clusters", "repeats", "steps", "paths", "samples", "validations")})


def reproduce(
    overrides: Sequence[str] = (),
    *,
    runs: str | Path | None = None,
    output: str | Path | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Fit and test the folds that are missing, then write the table.

    Args:
        overrides: Fields of `Settings` and ``data_dir``, ``name=value`` (list of str).
        runs: Folder of the runs (path, default `runs/reproduce`).
        output: Folder of the table (path, default: beside the runs).
        command: Command line to record in the table (str).
        report: Function that is called with a line of text after each fold.

    Returns:
        The written files, table.json and table.md.
    """
    stated = read(Settings, overrides, NAME)
    data_dir, settings = stated.pop("data_dir", None), Settings(**stated)
    folder = Path("runs/reproduce" if runs is None else runs) / NAME / digest(settings)
    output = folder if output is None else Path(output)
    store = store_of(settings.dataset, Genotypes(), data_dir=folder_of(data_dir), seed=settings.seed)
    with _files.locked(folder, "reproduce"):
        for number in range(settings.folds):
            path = folder / f"fold-{number}.json"
            if not path.is_file():
                found = Fold(store, settings, number).run()
                _files.write_json(path, found)
                report(f"{NAME} fold {number}: {found['people']} people, {found['seconds']:.0f} CPU seconds")
        return _write([_files.read_json(folder / f"fold-{number}.json") for number in range(settings.folds)], settings, store, output, command)


class Fold:
    """One fold of the people, with the posterior that is tested on it."""

    def __init__(self, store: GenotypeStore, settings: Settings, number: int) -> None:
        self.store, self.settings, self.number = store, settings, number
        order = rng.permutation(Draws(settings.seed).lane("split"), len(store)).numpy()[: settings.people or None]
        parts = [np.sort(order[start :: settings.folds]) for start in range(settings.folds)]
        self.test, self.validation = parts[number], parts[(number + 1) % settings.folds]
        self.train = np.sort(np.concatenate([part for place, part in enumerate(parts) if place not in (number, (number + 1) % settings.folds)]))

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Figures of the fold: of each posterior, share of calls and number of alleles, those of each test person."""
        start, settings = time.process_time(), self.settings
        with torch.enable_grad():
            self.posterior = PlacePosterior(
                num_clusters=settings.clusters, repeats=settings.repeats, steps=settings.steps, resolution=settings.resolution, seed=settings.seed
            ).fit(self.store, self.train)
        trained = time.process_time() - start
        cases = [self._case(share, haploid) for haploid in (False, True) for share in SHARES]
        return {"people": len(self.test), "seconds": time.process_time() - start, "training_seconds": trained, "cases": cases}

    def _case(self, share: float, haploid: bool) -> dict[str, Any]:
        """Figures of one share of calls, with one allele read of each variant or both."""
        place = 2 * SHARES.index(share) + haploid
        validation = self._people(np.tile(self.validation, self.settings.validations), share, haploid, place)
        test = self._people(self.test, share, haploid, len(SHARES) * 2 + place)
        choice = self._chosen(*validation)
        found = {}
        for name in POSTERIORS:
            levels = calibrated(self._places(name, validation[0], choice).regions(validation[1], LEVELS, self.settings.samples)[0])
            places = self._places(name, test[0], choice)
            credibility, areas = places.regions(test[1], (*LEVELS, *levels), self.settings.samples)
            found[name] = {
                "log_score": places.log_prob(test[1]).tolist(),
                "credibility": credibility.tolist(),
                "levels": list(levels),
                "areas": areas[: len(LEVELS)].mean(1).tolist(),
                "calibrated_areas": areas[len(LEVELS) :].mean(1).tolist(),
            }
        return {"share": share, "haploid": haploid, "least_squares": choice, "posteriors": found}

    def _people(self, rows: np.ndarray, share: float, haploid: bool, place: int) -> tuple[Summary, Tensor]:
        """Summaries of random calls of some people, and their true places with the error of the resolution."""
        draws = Draws(self.settings.seed, (_PLACES * self.number + place) << 32).lane("looked_at")
        reference, parts = self.posterior.reference_, []
        for first in range(0, len(rows), _ROWS):
            part = rows[first : first + _ROWS]
            tiles, count = tiles_of(self.store, part), len(part)
            options = torch.full((count,), share, device="cpu"), torch.full((count,), haploid, device="cpu")
            kept = thinned_tiles(tiles, *options, draws.advance(first))
            parts.append((reference.summarize(kept, count), reference.places(reference.summarize(tiles, count))))
        summaries, places = zip(*parts, strict=True)
        error = self.settings.resolution * rng.normal(draws, (len(rows), 2), rng.NOISE, dtype=torch.float64)
        return Summary(*(torch.cat(values) for values in zip(*summaries, strict=True))), torch.cat(places) + error

    def _chosen(self, summary: Summary, places: Tensor) -> tuple[int, float]:
        """Number of components and scale of the error of least squares with the best log score."""
        scores = {choice: self._least_squares(summary, choice).log_prob(places).mean() for choice in _choices()}
        return max(scores, key=lambda choice: scores[choice])

    def _least_squares(self, summary: Summary, choice: tuple[int, float]) -> Places:
        count, scale = choice
        place, error = least_squares(self.posterior.reference_, summary, count)
        covariance = scale * error + self.settings.resolution**2 * torch.eye(2, dtype=torch.float64, device="cpu")
        return Places(_numbers(summary), place.unsqueeze(0), torch.linalg.cholesky(covariance), summary.called)

    def _places(self, name: str, summary: Summary, choice: tuple[int, float]) -> Places:
        if name == "least_squares":
            return self._least_squares(summary, choice)
        posterior, paths = self.posterior, self.settings.paths
        return posterior.places(_numbers(summary), features(posterior.reference_, summary), summary.called, paths, name)


def calibrated(credibility: np.ndarray) -> tuple[float, ...]:
    """Probabilities of the regions of which each contains the wanted share of some people, given the credibilities of their places.

    Example:
        >>> calibrated(np.linspace(0, 0.5, 1001))
        (0.25, 0.4, 0.45)
    """
    return tuple(round(float(np.quantile(credibility, level)), 4) for level in LEVELS)


def _choices() -> list[tuple[int, float]]:
    return [(count, scale) for count in _COMPONENTS for scale in _SCALES]


def _numbers(summary: Summary) -> np.ndarray:
    """Names for people, of which only the number counts."""
    return np.arange(len(summary.called)).astype(object)


def _write(folds: list[dict[str, Any]], settings: Settings, store: GenotypeStore, output: Path, command: str) -> list[Path]:
    """Write the table of all folds."""
    record = {
        "kind": ancestry_missing_table.__name__,
        "command": command,
        **{name: value for name, value in environment().items() if name != "command"},
        "settings": dataclasses.asdict(settings),
        "variants": store.num_variants,
        "people": sum(fold["people"] for fold in folds),
        "seconds": sum(fold["seconds"] for fold in folds),
        "training_seconds": sum(fold["training_seconds"] for fold in folds),
        "cases": ancestry_missing_table.joined([fold["cases"] for fold in folds]),
    }
    return record_files.write(output / "table.json", record, md=markdown(record))
