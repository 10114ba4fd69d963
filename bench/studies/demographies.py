"""Clusters and proportions of people of simulated demographies: islands, stepping stones, an admixture pulse, out of Africa.

    python -m bench.studies.demographies run      # every cell that is not there: about a minute of one core each
    python -m bench.studies.demographies table    # adds them to bench/results/demographies.json and .md

A cell is a file in `--cells`. UMAP needs `pip install 'ddvi-fast[maps]'`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import records
from ddvi_fast import _checks, _markdown, genomes, metrics, paper  # noqa: F401 - genomes and paper register data sets and maps
from ddvi_fast.config.compose import compose
from ddvi_fast.genomes.simulate import POPULATIONS, Simulation, demography, write_simulation
from ddvi_fast.training.run import load_dataset, run

_SEGMENTS = 3  # of 50,000 base pairs on each of 22 chromosomes: some 7,000 to 10,000 variants
_QUIET = ["figures=false", "progress=off", "tensorboard=false", "checkpoint_steps=null", "evaluation.evidence=false", "evaluation.iwae_samples=50"]
METHODS = {"clusters": "method=ddvi_clustering", "components": "components with a mixture", "umap": "UMAP with k-means"}


def islands(msprime: Any) -> tuple[Any, list[str]]:
    """Six islands of 1,000 people, each of which takes 0.4% of its people from the others in each generation."""
    history = msprime.Demography.island_model([1000] * 6, migration_rate=0.004 / 5)
    return history, [each.name for each in history.populations]


def stepping_stones(msprime: Any) -> tuple[Any, list[str]]:
    """Eight populations of 1,000 people in a row, each of which takes 1% of its people from each neighbour in each generation."""
    history = msprime.Demography.stepping_stone_model([1000] * 8, migration_rate=0.01, boundaries=True)
    return history, [each.name for each in history.populations]


def pulse(msprime: Any) -> tuple[Any, list[str]]:
    """Two populations that parted 1,000 generations ago, and one that is mixed of them, 70 to 30, since 8 generations."""
    history = msprime.Demography()
    for name in ("A", "B", "MIXED", "ANCESTORS"):
        history.add_population(name=name, initial_size=5000)
    history.add_admixture(time=8, derived="MIXED", ancestral=["A", "B"], proportions=[0.7, 0.3])
    history.add_population_split(time=1000, derived=["A", "B"], ancestral="ANCESTORS")
    return history, ["A", "B", "MIXED"]


def out_of_africa(msprime: Any) -> tuple[Any, list[str]]:
    """The demography of `ddvi-fast data simulate`."""
    return demography(msprime), list(POPULATIONS)


HISTORIES: dict[str, Callable[[Any], tuple[Any, list[str]]]] = {
    "islands": islands, "stepping stones": stepping_stones, "pulse": pulse, "out of Africa": out_of_africa,
}  # fmt: skip


def cell(name: str, people: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """NMI of clusters with populations, and CPU seconds, of each method on one simulated cohort."""
    import msprime

    torch.set_num_threads(1)
    history, populations = HISTORIES[name](msprime)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(samples=people // len(populations), segments=_SEGMENTS, seed=seed)
        store = write_simulation(simulation, Path(folder) / "store", history=history, populations=populations)
        settings = [
            "dataset=1kg", f"data={store.path}", f"seed={seed}", f"method.clustering.num_clusters={len(populations)}",
            f"dataset.genotypes.num_components={len(populations)}", "dataset.genotypes.held_out=0", *_QUIET,
        ]  # fmt: skip
        found = {"clusters": _run([*settings, "method=ddvi_clustering", f"run_dir={folder}/clusters", *overrides])}
        found["components"] = _components(settings, len(populations), seed)
        found["umap"] = _run([*settings, "method=umap", f"run_dir={folder}/umap"])
    size = {"people": len(store), "variants": store.num_variants, "populations": len(populations)}
    return {"demography": name, "seed": seed, **size, "nmi": {key: value[0] for key, value in found.items()},
            "seconds": {key: value[1] for key, value in found.items()}}  # fmt: skip


def _run(settings: list[str]) -> tuple[float, float]:
    started = time.process_time()
    result = run(compose([setting for setting in settings if "=" in setting]))
    return result.metrics["nmi"], time.process_time() - started


def _components(settings: list[str], clusters: int, seed: int) -> tuple[float, float]:
    """A mixture of Gaussians in as many principal components as separate that many clusters, the best of ten starts."""
    from sklearn.mixture import GaussianMixture

    started, dataset = time.process_time(), load_dataset(compose([*settings, "method=pca"]))
    x = dataset.inputs().double().numpy()[:, : clusters - 1]  # which separate that many groups
    found = GaussianMixture(clusters, n_init=10, random_state=seed).fit_predict(x)
    return metrics.nmi(dataset.labels(), torch.from_numpy(found)), time.process_time() - started


def markdown(record: dict[str, Any]) -> str:
    """The table of all cells: one row for each demography and number of people."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for found in record["cells"]:
        groups.setdefault((found["demography"], found["people"]), []).append(found)
    order = list(HISTORIES)
    rows = [
        [name, f"{people:,}", str(cells[0]["populations"]), str(len(cells)),
         *(_mean_and_ends([each["nmi"][method] for each in cells]) for method in METHODS),
         *(f"{statistics.fmean(each['seconds'][method] for each in cells):.0f}" for method in METHODS)]
        for (name, people), cells in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]  # fmt: skip
    made = sorted({(found["commit"] or "none", found["processor"]) for found in record["cells"]})
    about = [
        "NMI of clusters with populations, as many clusters as populations: mean over seeds (lowest and highest). All methods use as many principal "
        "components of all people as there are clusters, the mixture of Gaussians one less; mixture and k-means are the best of ten starts.",
        *(f"Commit {commit[:10]}, {processor}, one thread." for commit, processor in made),
    ]
    headings = ["demography", "people", "populations", "seeds", *METHODS.values(), *(f"CPU seconds, {method}" for method in METHODS)]
    return "\n".join(["# Clusters of simulated demographies", "", *about, "", _markdown.table(headings, rows), ""])


def _mean_and_ends(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("runs/demographies"), help="folder of the cells")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("run", help="compute the cells that are not there")
    made.add_argument("--demographies", nargs="+", default=tuple(HISTORIES), choices=HISTORIES)
    made.add_argument("--people", nargs="+", type=int, default=(200, 600))
    made.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    made.add_argument("--settings", nargs="+", default=[], metavar="name=value", help="further settings of method=ddvi_clustering")
    commands.add_parser("table", help="write the results and the table")
    options = parser.parse_args(arguments)
    if options.command == "run":
        _checks.library("umap", "maps")  # else missed only after the clusters of the first cell
        for seed, people, name in ((s, p, n) for s in options.seeds for p in options.people for n in options.demographies):
            _keep(options.cells / f"{name.replace(' ', '_')}-{people}-{seed}.json", name, people, seed, options.settings)
        return 0
    records.add_cells("demographies", options.cells, ("demography", "people", "seed"))
    return 0


def _keep(path: Path, name: str, people: int, seed: int, overrides: list[str]) -> None:
    if found := records.keep_cell(path, lambda: cell(name, people, seed, overrides)):
        print(path.stem, found["nmi"], found["seconds"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
