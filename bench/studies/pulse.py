"""Proportions of people of an admixture pulse, against maximum likelihood with the true frequencies of the sources.

    python -m bench.studies.pulse run      # every cell that is not there: about a minute of one core each
    python -m bench.studies.pulse table    # adds them to bench/results/pulse.json and .md

The true proportions are those of the segments that a person has from each source, which the simulation keeps. A cell is a file in `--cells`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import records
from bench.studies.demographies import pulse
from ddvi_fast import _markdown
from ddvi_fast.genomes.admixture import Admixture, matched
from ddvi_fast.genomes.convert import write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import Block, Source
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import SampleTable, VariantTable

KINDS = {"supervised": "two labelled sources", "unsupervised": "no labels"}
_GROUP = 200  # people of each source, and of both
_PANEL = 2000  # people of each source that give its true frequencies
_SEGMENTS, _LENGTH, _CHROMOSOMES = 330, 20_000, 22
_CENSUS = 8.5  # generations ago, just before the sources mixed
_FILTERS = Filters(min_frequency=0.02, varying=True, max_correlation=0.2)


class Simulated(NamedTuple):
    """Genotypes [600, M], allele frequencies of the two sources [2, M], shares of the first source of the 200 mixed people, and variants."""

    genotypes: np.ndarray
    frequencies: np.ndarray
    shares: np.ndarray
    variants: list[tuple[str, int, str, str, str]]


@functools.lru_cache(maxsize=1)  # both kinds of a seed have the same people
def simulate(seed: int, segments: int = _SEGMENTS, group: int = _GROUP, panel: int = _PANEL) -> Simulated:
    """People of an admixture pulse, 70 to 30, eight generations ago."""
    import msprime

    history, names = pulse(msprime)
    history.add_census(time=_CENSUS)
    history.sort_events()
    people = [msprime.SampleSet(group, population=name) for name in names]
    earlier = [msprime.SampleSet(panel, population=name, time=_CENSUS + 0.5) for name in names[:2]]
    replicates = msprime.sim_ancestry(
        [*people, *earlier], demography=history, sequence_length=_LENGTH, recombination_rate=1e-8, random_seed=seed + 1, num_replicates=segments
    )
    codes, frequencies, variants, covered = [], [], [], np.zeros(2 * group)
    for number, trees in enumerate(replicates):
        covered += covered_by_first(trees, np.arange(4 * group, 6 * group)) / segments
        mutated = msprime.sim_mutations(trees, rate=2e-8, model="binary", random_seed=seed * 7919 + number + 1)
        alleles = mutated.genotype_matrix()
        if len(alleles):
            ours, panels = alleles[:, : 6 * group], alleles[:, 6 * group :].reshape(len(alleles), 2, -1)
            codes.append(ours[:, 0::2] + ours[:, 1::2])
            frequencies.append(panels.mean(-1).T)
            chromosome, first = str(number % _CHROMOSOMES + 1), number // _CHROMOSOMES * _LENGTH + 1
            variants += [(chromosome, first + int(position), ".", "C", "A") for position in mutated.tables.sites.position]
    return Simulated(np.concatenate(codes).T.astype(np.uint8), np.concatenate(frequencies, 1), covered.reshape(-1, 2).mean(1), variants)


def covered_by_first(trees: Any, nodes: np.ndarray) -> np.ndarray:
    """Share of the sequence of each node whose ancestor at the census belongs to the first population."""
    census = np.flatnonzero(trees.nodes_time == _CENSUS)
    links = trees.dump_tables().link_ancestors(nodes, census)
    lengths = np.where(trees.nodes_population[links.parent] == 0, links.right - links.left, 0)
    return np.bincount(links.child, lengths, trees.num_nodes)[nodes] / trees.sequence_length


def stored(simulated: Simulated, folder: Path) -> tuple[GenotypeStore, np.ndarray]:
    """Store of the variants that are left by the filters, and the frequencies of the sources at them."""
    order = sorted(range(len(simulated.variants)), key=lambda at: (int(simulated.variants[at][0]), simulated.variants[at][1]))
    rows = [simulated.variants[at] for at in order]
    group = len(simulated.genotypes) // 3
    population = np.repeat(np.array(["A", "B", ""], object), group)
    samples = SampleTable(np.array([f"person{number:04d}" for number in range(3 * group)], object), {"population": population})
    blocks = iter([Block(VariantTable.from_rows(rows), np.ascontiguousarray(simulated.genotypes[:, order].T))])
    folder.mkdir()
    write_store(Source(Path("msprime"), samples, blocks), folder, filters=_FILTERS)
    store = GenotypeStore(folder)
    known = {row[:2]: at for row, at in zip(rows, order, strict=True)}
    kept = [known[str(chromosome), int(position)] for chromosome, position in zip(store.variants.chromosome, store.variants.position, strict=True)]
    return store, simulated.frequencies[:, kept]


def most_likely(codes: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Share of the first source at the maximum of the binomial likelihood, on a grid of a thousandth."""
    grid = np.linspace(0, 1, 1001)[1:-1]
    p = (grid[:, None] * frequencies[0] + (1 - grid[:, None]) * frequencies[1]).clip(1e-6, 1 - 1e-6)
    return grid[(codes @ np.log(p).T + (2.0 - codes) @ np.log1p(-p).T).argmax(1)]


def cell(kind: str, seed: int) -> dict[str, Any]:
    """Errors over the mixed people alone, and the coverage of 90% intervals."""
    torch.set_num_threads(1)
    simulated = simulate(seed)
    with tempfile.TemporaryDirectory() as folder:
        store, frequencies = stored(simulated, Path(folder) / "store")
        started = time.process_time()
        model = Admixture(2, seed=seed).fit(store, store.samples.labels["population"] if kind == "supervised" else None)
        found = model.proportions(store)
        seconds, codes = time.process_time() - started, store.genotypes(slice(0, len(store)))[2 * _GROUP :]
    pure = np.concatenate([np.ones(_GROUP), np.zeros(_GROUP), simulated.shares])
    first = 0 if kind == "supervised" else matched(found.mean, np.stack((pure, 1 - pure), 1))[0]
    mixed, truth = slice(2 * _GROUP, None), simulated.shares
    mean, best = found.mean[mixed, first], most_likely(codes, frequencies)
    lower, upper = (end[mixed, first] for end in found.interval())
    return {
        "kind": kind, "seed": seed, "people": len(store), "variants": store.num_variants,
        "correlation": _correlation(mean, truth), "correlation_ml": _correlation(best, truth),
        "rmse": _rmse(mean, truth), "rmse_ml": _rmse(best, truth), "coverage": float(((lower <= truth) & (truth <= upper)).mean()),
        "seconds": seconds,
    }  # fmt: skip


def _correlation(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(found, truth)[0, 1])


def _rmse(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - truth).mean()))


def markdown(record: dict[str, Any]) -> str:
    """The table: a row for each kind, means over seeds."""
    rows = []
    for kind, label in KINDS.items():
        cells = [each for each in record["cells"] if each["kind"] == kind]
        if cells:
            means = {key: statistics.fmean(each[key] for each in cells) for key in cells[0] if isinstance(cells[0][key], int | float)}
            ratio = statistics.fmean(each["rmse"] / each["rmse_ml"] for each in cells)
            rows.append(
                [label, str(len(cells)), f"{means['variants']:,.0f}", f"{means['correlation']:.3f}", f"{means['correlation_ml']:.3f}",
                 f"{means['rmse']:.4f}", f"{means['rmse_ml']:.4f}", f"{ratio:.2f}", f"{means['coverage']:.1%}", f"{means['seconds']:.0f}"]
            )  # fmt: skip
    made = sorted({(each["commit"] or "none", each["processor"]) for each in record["cells"]})
    about = [
        "People mixed of two sources, 70 to 30, eight generations ago, with 200 people of each source: means over seeds, over the mixed people "
        "alone. Maximum likelihood has the frequencies of 2,000 people of each source at the time of the pulse. Of variants with a squared "
        "correlation above 0.2 one is left out.",
        *(f"Commit {commit[:10]}, {processor}, one thread." for commit, processor in made),
    ]
    headings = ["fit", "seeds", "variants", "correlation", "correlation, maximum likelihood", "RMSE", "RMSE, maximum likelihood", "ratio of RMSE",
                "coverage of 90% intervals", "CPU seconds"]  # fmt: skip
    return "\n".join(["# Proportions after an admixture pulse", "", *about, "", _markdown.table(headings, rows), ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("runs/pulse"), help="folder of the cells")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("run", help="compute the cells that are not there")
    made.add_argument("--kinds", nargs="+", default=tuple(KINDS), choices=KINDS)
    made.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    commands.add_parser("table", help="write the results and the table")
    options = parser.parse_args(arguments)
    if options.command == "table":
        records.add_cells("pulse", options.cells, ("kind", "seed"))
        return 0
    for seed, kind in ((seed, kind) for seed in options.seeds for kind in options.kinds):
        _keep(options.cells / f"{kind}-{seed}.json", kind, seed)
    return 0


def _keep(path: Path, kind: str, seed: int) -> None:
    if found := records.keep_cell(path, lambda: cell(kind, seed)):
        print(path.stem, *(f"{name} {value:.4g}" for name, value in found.items() if isinstance(value, float)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
