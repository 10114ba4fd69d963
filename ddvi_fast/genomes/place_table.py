"""Table of the places of people of a genotype file on the map of a panel."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ddvi_fast import _checks
from ddvi_fast.genomes.align import align
from ddvi_fast.genomes.convert import store_or_import
from ddvi_fast.genomes.people import write_table
from ddvi_fast.genomes.place import PlacePosterior, require_common
from ddvi_fast.genomes.places import Places
from ddvi_fast.genomes.store import GenotypeStore

LEVELS = (0.5, 0.8, 0.9)  # probabilities of the regions


def place(
    panel: str | Path, file: str | Path, out: str | Path, *, save: str | Path | None = None, seed: int | None = None, overwrite: bool = False
) -> list[Path]:
    """Write a table of the places of the people of a file, given the variants that were called; returns the written paths.

    Args:
        panel: Store or genotype file of the people to whom a `PlacePosterior` is fitted, or the folder of one that was saved.
        file: Store or genotype file of the people to place.
        out: Table to write.
        save: New folder for the fitted posterior (default none).
        seed: Seed of the fit (int, default 0).
        overwrite: Whether to replace `out` (bool, default False).

    Raises:
        InputError: `out` or `save` exists, a file cannot be read, `seed` or `save` is given with a saved posterior, or the files have fewer than 20
            variants in common.
    """
    out, save = _checks.path(out, "out").expanduser(), None if save is None else _checks.path(save, "save").expanduser()
    _checks.require(overwrite or not out.exists(), "out", "a new file", str(out), "overwrite (--overwrite) replaces it")
    _checks.require(save is None or not save.exists(), "save", "a new folder", str(save))
    with tempfile.TemporaryDirectory() as folder:
        others = store_or_import(file, Path(folder) / "others")
        model = _fitted_or_loaded(_checks.path(panel, "panel").expanduser(), Path(folder) / "panel", others, save, seed)
        write_table(out, columns(model.posterior(others), len(model.reference_.mean)))
    return [out] if save is None else [out, save]


def columns(places: Places, num_variants: int) -> dict[str, list[str]]:
    """Text columns by heading: names, shares of calls, places and their standard deviations, and areas and ends of the regions of `LEVELS`."""
    numbers = {f"{name}{axis + 1}": values[:, axis] for name, values in (("place", places.mean), ("spread", places.spread)) for axis in range(2)}
    areas = places.regions(places.centres[0], LEVELS)[1]
    for level, area in zip(LEVELS, areas, strict=True):
        ends, percent = places.extents(level), f"{100 * level:.0f}"
        numbers[f"area_{percent}"] = area
        numbers |= {f"{end}{axis + 1}_{percent}": ends[:, axis, side] for axis in range(2) for side, end in enumerate(("low", "high"))}
    called = places.called.numpy() / num_variants
    return {
        "name": places.people.tolist(), "called": [f"{share:.4f}" for share in called],
        **{heading: [f"{value:.5g}" for value in values] for heading, values in numbers.items()},
    }  # fmt: skip


def _fitted_or_loaded(panel: Path, folder: Path, others: GenotypeStore, save: Path | None, seed: int | None) -> PlacePosterior:
    if PlacePosterior.is_saved(panel):
        for name, value in (("save", save), ("seed", seed)):
            _checks.require(value is None, name, f"none for {panel}, a posterior that was fitted", value)
        return PlacePosterior.load(panel)
    store = store_or_import(panel, folder)
    require_common(align(others.variants, store.variants))  # known before the fit, which takes minutes
    model = PlacePosterior(seed=0 if seed is None else seed).fit(store)
    if save is not None:
        model.save(save)
    return model
