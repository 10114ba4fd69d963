"""The figures of the table ancestry-missing, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddvi_fast import _markdown

LEVELS = (0.5, 0.8, 0.9)
POSTERIORS = {"least_squares": "least squares", "gaussian": "Gaussian posterior", "diffusion": "diffusion"}


def joined(folds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Figures of all people from those of the folds, of which each has the same cases in the same order."""
    found = []
    for parts in zip(*folds, strict=True):
        posteriors = {name: _figures([part["posteriors"][name] for part in parts]) for name in POSTERIORS}
        found.append({"share": parts[0]["share"], "haploid": parts[0]["haploid"], "posteriors": posteriors})
    return found


def _figures(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean log score with its standard error, and coverages and areas of the regions before and after the calibration on validation people."""
    scores, credibility = (np.concatenate([part[name] for part in parts]) for name in ("log_score", "credibility"))
    sizes = np.array([len(part["log_score"]) for part in parts], float)
    limits = np.repeat(np.array([part["levels"] for part in parts]), sizes.astype(int), axis=0)
    areas, calibrated = (np.average([part[name] for part in parts], axis=0, weights=sizes) for name in ("areas", "calibrated_areas"))
    return {
        "log_score": float(scores.mean()),
        "error": float(scores.std(ddof=1) / len(scores) ** 0.5),
        "coverage": [float((credibility <= level).mean()) for level in LEVELS],
        "areas": areas.tolist(),
        "calibrated_coverage": (credibility[:, None] <= limits).mean(0).tolist(),
        "calibrated_areas": calibrated.tolist(),
    }


def markdown(record: dict[str, Any]) -> str:
    """The tables of a record: diploid calls, then pseudo-haploid ones."""
    settings, processor = record["settings"], record["machine"]["processor"]
    source = f"Commit {str(record['commit'])[:10]}, {processor}, torch {record['versions']['torch']}."
    lines = [
        "# Places of people of whom few variants are called",
        "",
        f"`{record['command']}`. {source} {record['seconds'] / 60:.0f} CPU minutes, {record['training_seconds'] / 60:.0f} of them of training.",
        f"{record['people']:,} people and {record['variants']:,} variants of {settings['dataset']}, {settings['folds']} folds: components and"
        " posteriors are fitted to all but two folds, regions are scaled on one of these and tested on the other. The place is the pair of the first"
        " two principal components of the person with all variants, projected on the components of the people who were fitted, in units of the"
        " standard deviation of the first one. All posteriors are those of the place with a normal error of standard deviation"
        f" {settings['resolution']:g}, because with all variants the place itself is known.",
        "",
        "Log score: mean log-density of the true place, nats, ± its standard error. Coverage: share of the true places in the regions of highest"
        " density of 50, 80 and 90%, as the posterior states them; scaled: the same, with the probability of each region chosen on the validation"
        " fold so that it covers 50, 80 or 90% there; area: mean area of the scaled regions. Least squares: scores that fit the calls best, with"
        " their Gaussian error; the number of components and a scale of the error are chosen on the validation fold. Gaussian posterior: of the"
        f" same features, with the same training of {settings['steps']:,} steps; the chain of the diffusion starts from it.",
        "",
        "Both alleles of each called variant:",
        "",
        _table(record, False),
        "",
        "One random allele of each called variant (pseudo-haploid):",
        "",
        _table(record, True),
        "",
    ]
    return "\n".join(lines)


def _table(record: dict[str, Any], haploid: bool) -> str:
    headings = ["called", "posterior", "log score", "coverage 50 / 80 / 90 %", "scaled", "area of 50 %", "area of 80 %", "area of 90 %"]
    cases = [case for case in record["cases"] if case["haploid"] == haploid]
    rows = [[f"{case['share']:.0%}", POSTERIORS[name], *_row(case["posteriors"][name])] for case in cases for name in POSTERIORS]
    return _markdown.table(headings, rows)


def _row(figures: dict[str, Any]) -> list[str]:
    coverages = [" / ".join(f"{100 * value:.1f}" for value in figures[name]) for name in ("coverage", "calibrated_coverage")]
    return [f"{figures['log_score']:.3f} ± {figures['error']:.3f}", *coverages, *(f"{area:.3g}" for area in figures["calibrated_areas"])]
