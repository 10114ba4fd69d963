"""Proportions of the people of a file, into a folder with tables and a figure."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.admixture import Admixture, held_out_log_likelihood, write_proportions
from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.store import GenotypeStore, is_store
from ddvi_fast.plots.admixture import admixture_bars
from ddvi_fast.standardization import tell

_STEM = "admixture"


def admixture(
    file: str | Path,
    sources: Sequence[int],
    out: str | Path,
    *,
    supervised: str | Path | None = None,
    label: str | None = None,
    groups: str | Path | None = None,
    concentration: float = 1.0,
    seed: int = 0,
) -> list[Path]:
    """Write proportions, frequencies and a figure; returns the paths.

    Args:
        file: Store, or genotype file of any format.
        sources: Numbers of sources, of which held-out genotypes choose where there are several.
        out: New folder.
        supervised: Table of people who are known to come from one source each; people without a label are not (default none).
        label: Column of the source in that table (default: its only column).
        groups: Table whose first column of labels names the groups of the figure (default: the sources of `supervised`).
        concentration, seed: See `Admixture`.

    Raises:
        InputError: `out` exists, the file or a table cannot be read, or the labels do not name `sources` sources.
    """
    out = _checks.path(out, "out").expanduser()
    _checks.require(not out.exists(), "out", "a new folder", str(out))
    numbers = _checks.integers(sources, "sources", 1)
    with tempfile.TemporaryDirectory() as folder:
        path = _checks.path(file, "file").expanduser()
        store = GenotypeStore(path) if path.is_dir() and is_store(path) else import_genotypes(path, Path(folder) / "store")
        labels = None if supervised is None else _column(store, supervised, label)
        names = labels if groups is None else _column(store, groups, None, first=True)
        _checks.require(supervised is None or len(numbers) == 1, "sources", "one number, for a supervised fit", list(numbers))
        model = Admixture(_chosen(store, numbers, seed), concentration=concentration, seed=seed).fit(store, labels)
        found = model.proportions(store)
        out.mkdir(parents=True)
        written = write_proportions(out, model, found, _STEM)
    shown = None if names is None else np.where(names == "", "unlabelled", names).tolist()
    return [*written, admixture_bars(out / f"{_STEM}.png", found.mean, found.sources, shown)]


def _chosen(store: GenotypeStore, numbers: Sequence[int], seed: int) -> int:
    if len(numbers) == 1:
        return numbers[0]
    scores = {number: held_out_log_likelihood(store, number, seed) for number in numbers}
    tell("sources: " + ", ".join(f"{number}: {score:.5f}" for number, score in scores.items()) + " nats per held-out genotype")
    return max(scores, key=scores.__getitem__)


def _column(store: GenotypeStore, table: str | Path, label: str | None, first: bool = False) -> np.ndarray:
    """A column of the people's labels in a table, [N]."""
    samples, _ = attach(store.samples, read_labels(table), leave_out=True)
    added = [name for name in samples.labels if name not in store.samples.labels or samples.labels[name] is not store.samples.labels[name]]
    if label is None:
        _checks.require(first or len(added) == 1, "label", f"one of {', '.join(added)}", "none")
        label = added[0]
    return samples.labels[_checks.choice(label, added, "label")]
