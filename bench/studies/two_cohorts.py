"""Two cohorts in different genome builds: fit on one, project both copies of the people who are in both."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import records
from ddvi_fast import DDVI, plots
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.genomes import GenotypeStore, MatchReport, import_genotypes

FITTED, MINE, OTHER = "fitted people", "the same build", "another build"
HEADINGS = [
    "fitted on", "people", "match of the other file", "components, difference of the two copies", "map, difference of the two copies",
    "population of the nearest 20, same build", "population of the nearest 20, another build", "CPU seconds",
]  # fmt: skip
UNSEEN = [
    "fitted on",
    "population",
    "people",
    "nearest fitted populations",
    "distance to the nearest fitted person",
    "spread",
    "probability of the cluster",
]
_NEIGHBOURS = 20


class Cohort(NamedTuple):
    """One file: its name, store, and the population of each of its people, empty where it is unknown."""

    name: str
    store: GenotypeStore
    population: np.ndarray


class Study(NamedTuple):
    """What one fit says of people."""

    fitted: Cohort
    other: Cohort
    rows: np.ndarray
    common: np.ndarray
    report: str
    components: tuple[np.ndarray, ...]
    places: dict[str, np.ndarray]
    spread: np.ndarray
    probability: np.ndarray
    seconds: float


def cohorts(data: Path, folder: Path) -> tuple[Cohort, Cohort]:
    """The people of 1000 Genomes phase 1 (build 37) and those of HapMap 3 (build 36)."""
    table = [line.split("\t") for line in (data / "1kg/1kg_phase3_samples.tsv").read_text().splitlines()[1:]]
    known = {row[0]: row[1] for row in table}
    rows = [line.split() for line in (data / "hapmap3/hapmap3_relationships.txt").read_text().splitlines()]
    hapmap = {row[1]: "MXL" if row[6] == "MEX" else row[6] for row in rows}  # one population, two names
    made = []
    for name, file, names in (("1000 Genomes phase 1", "1kg_phase1", {**hapmap, **known}), ("HapMap 3", "hapmap3", {**hapmap, **known})):
        store = import_genotypes(data / "hapmap3" / f"{file}.bed", folder / file)
        made.append(Cohort(name, store, np.array([names.get(person, "") for person in store.samples.name], object)))
    return made[0], made[1]


def fitted(one: Cohort, other: Cohort, epochs: int | None) -> Study:
    """Fit on the people of `one` who are not in `other`; then project everybody of both files."""
    common = np.array(sorted(set(one.store.samples.name) & set(other.store.samples.name)))
    rows = np.flatnonzero(~np.isin(one.store.samples.name.astype(str), common))
    began = time.process_time()
    model = DDVI(n_clusters=20, epochs=epochs).fit(one.store, rows=rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        places, scores, spread, probability = {}, {}, {}, {}
        for cohort in (one, other):
            samples = model.posterior_samples(cohort.store, 60)
            places[cohort.name], spread[cohort.name] = samples.mean(0), samples.std(0).mean(1)
            scores[cohort.name] = model.features_.pca.transform(cohort.store, unshrunk="new")
            probability[cohort.name] = model.cluster_probabilities(cohort.store).max(1)
    report = next(str(each.message).removeprefix("store: ") for each in told if issubclass(each.category, MatchReport))
    copies = tuple(scores[cohort.name][_places(cohort, common)] for cohort in (one, other))
    return Study(
        one, other, rows, common, report.split(":")[0], copies, places, spread[other.name], probability[other.name], time.process_time() - began
    )


def row(study: Study) -> list[Any]:
    """A row of the first table."""
    copies = [study.places[cohort.name][_places(cohort, study.common)] for cohort in (study.fitted, study.other)]
    truth = study.fitted.population[_places(study.fitted, study.common)]
    seen = np.isin(truth, study.fitted.population[study.rows]) & (truth != "")
    right = [float(np.mean(_nearest(study, copy)[seen] == truth[seen])) for copy in copies]
    return [
        study.fitted.name, len(study.rows), study.report, _difference(*study.components), _difference(*copies), *right, study.seconds,
    ]  # fmt: skip


def unseen(study: Study) -> list[list[Any]]:
    """Rows of the second table: populations of the other file of which nobody was fitted."""
    here, there = study.places[study.fitted.name][study.rows], study.places[study.other.name]
    labels = study.fitted.population[study.rows]
    found = []
    for name in sorted(set(study.other.population) - set(labels) - {""}):
        members = np.flatnonzero(study.other.population == name)
        near = _nearest(study, there[members])
        names, counts = np.unique(near.astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:3]
        nearest = ", ".join(f"{names[k]} {counts[k] / len(members):.0%}" for k in order)
        distance = np.linalg.norm(there[members, None] - here, axis=-1).min(1)
        values = [float(np.median(each)) for each in (distance, study.spread[members], study.probability[members])]
        found.append([study.fitted.name, name, len(members), nearest, *values])
    return found


def picture(path: Path, studies: Sequence[Study]) -> Path:
    """Draw the fitted people, and both copies of the people who are in both files, for each fit."""
    names = sorted({str(name) for study in studies for cohort in (study.fitted, study.other) for name in cohort.population} - {""}) + ["unknown"]
    panels, labels, axes = [], [], []
    for study in studies:
        parts = (
            (f"fitted: {study.fitted.name}", study.fitted, study.rows),
            ("in both files, same build", study.fitted, _places(study.fitted, study.common)),
            ("in both files, another build", study.other, _places(study.other, study.common)),
        )
        for head, cohort, chosen in parts:
            panels.append((head, study.places[cohort.name][chosen]))
            labels.append(np.array([names.index(name or "unknown") for name in cohort.population[chosen]]))
            axes.append((f"latent 1, {study.fitted.name}", f"latent 2, {study.fitted.name}"))
    return plots.population_maps(path, panels, labels, names, names, axes=axes, columns=3, counted=False, overwrite=True)


def _places(cohort: Cohort, names: np.ndarray) -> np.ndarray:
    where = {name: place for place, name in enumerate(cohort.store.samples.name)}
    return np.array([where[name] for name in names])


def _nearest(study: Study, places: np.ndarray) -> np.ndarray:
    """Most frequent population among the nearest fitted people."""
    here, labels = study.places[study.fitted.name][study.rows], study.fitted.population[study.rows]
    known = labels != ""
    order = np.argsort(np.linalg.norm(places[:, None] - here[known], axis=-1), axis=1)[:, :_NEIGHBOURS]
    votes = [np.unique(row.astype(str), return_counts=True) for row in labels[known][order]]
    return np.array([names[counts.argmax()] for names, counts in votes], object)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Norm of the difference of all places relative to that of the places around their mean."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one - one.mean(0)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders hapmap3 and 1kg")
    parser.add_argument("--epochs", type=int, help="epochs of training (default: the recipe's)")
    parser.add_argument("--output", type=Path, help="results file, JSON, with the table beside it")
    parser.add_argument("--picture", type=Path, help="picture of the maps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        phase1, hapmap = cohorts(options.data, Path(folder))
        studies = [fitted(phase1, hapmap, options.epochs), fitted(hapmap, phase1, options.epochs)]
        record = {
            "kind": records.TABLE_KIND, **environment(), "command": "python -m bench.studies.two_cohorts --data FOLDER",
            "title": "Two cohorts in different genome builds",
            "about": [
                "", "HapMap 3 (957 people, build 36) and 1000 Genomes phase 1 (1,092 people, build 37) on 14,079 variants; 564 people are in both "
                "files. `DDVI(n_clusters=20)` is fitted on the people of one file who are not in the other, and both copies of the 564 people are "
                "projected. Differences are norms relative to the spread of the places. The share of people whose population is the most frequent "
                "one among the 20 nearest fitted people counts populations that were fitted.",
            ],
            "headings": HEADINGS, "formats": ["", ",", "", ".3f", ".3f", ".3f", ".3f", ".0f"],
            "rows": [row(study) for study in studies],
        }  # fmt: skip
        further = {
            **record, "title": "Populations that were never seen",
            "about": ["", "People of the other file. Distances and spreads (of a person's posterior samples) are medians, in units of the map."],
            "headings": UNSEEN, "formats": ["", "", ",", "", ".2f", ".2f", ".2f"],
            "rows": [each for study in studies for each in unseen(study)],
        }  # fmt: skip
        if options.picture:
            picture(options.picture, studies)
    if options.output:
        second = options.output.with_name(f"{options.output.stem}-unseen.json")
        print(records.write(options.output, record), records.write(second, further), sep="\n")
    else:
        print(records.markdown_of(record), records.markdown_of(further), sep="\n")


if __name__ == "__main__":
    main()
