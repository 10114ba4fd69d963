"""Twenty principal components of 2,504 simulated genomes, by ours and by what others use, each in a process of its own.

python -m bench.genome_components [--threads 2] [--variants 20000 50000] [--large 1000000] [--overwrite]

Ours reads a packed store; scikit-learn and scikit-allel (its `randomized_pca` with Patterson's scaling, where it is installed) get the matrix
in memory. Seconds are of the fit alone, memory is the process's peak with libraries, input and mapped pages. The `--large` size is
ours alone: the dense matrix in float32 would take four bytes a genotype.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.genomes import COMPONENTS, POPULATIONS, simulated_store
from bench.records import RESULTS
from ddvi_fast.data.packed import Scaling
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore

SAMPLES = 2504
NAME = "genomes-components-cpu"
METHODS = {
    "ours": "until every component has converged",
    "ours, 7 passes": "as many as scikit-learn's randomised solver makes",
    "scikit-learn": "PCA(svd_solver='randomized') on the dense matrix",
    "scikit-allel": "randomized_pca(scaler='patterson')",
}
HEADINGS = (
    "variants",
    "method",
    "seconds",
    "CPU seconds",
    "peak memory, MB",
    "store or matrix, MB",
    "variance of the 20 components",
    "least cosine of the first four",
)


def main(arguments: list[str]) -> None:
    options = _parse(arguments)
    if options.child:
        print(json.dumps(_measured(options.child, Path(options.store), Path(options.store).parent / "scores.npy", options.threads)))
        return
    path = RESULTS / f"{NAME}.json"
    if path.exists() and not options.overwrite:
        raise SystemExit(f"{path} stands already; --overwrite replaces it")
    rows = []
    for variants in (*options.variants, *([options.large] if options.large else [])):
        rows += _at_size(variants, ["ours"] if variants == options.large else list(METHODS), options.threads)
    command = " ".join(["python -m bench.genome_components", *arguments])
    record = {"kind": NAME, **environment(), "command": command, "threads": options.threads, "methods": METHODS, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    print(markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    about = [
        f"{record['machine']['processor']}, {record['threads']} threads; `{record['command']}`, commit {str(record['commit'])[:10]}.",
        "The machine was shared with other work: CPU seconds, over all threads, are the steadier figure.",
        f"Methods: {'; '.join(f'{name}: {text}' for name, text in record['methods'].items())}.",
        "Variance is the sum of the 20 explained variances, relative to ours where it converged; the cosine is between our component and theirs.",
    ]
    lines = [f"# Twenty principal components of {SAMPLES:,} simulated genomes", "", *about, ""]
    lines += [f"| {' | '.join(HEADINGS)} |", f"| {' | '.join('---' for _ in HEADINGS)} |"]
    return "\n".join(lines + [f"| {' | '.join(_cells(row))} |" for row in record["rows"]]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    head = [f"{row['variants']:,}", row["method"]]
    if "missing" in row:
        return [*head, row["missing"], *["-"] * (len(HEADINGS) - 3)]
    sizes = [f"{row[name] / 1e6:.0f}" for name in ("peak_bytes", "input_bytes")]
    return [*head, f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", *sizes, f"{row['variance']:.4f}", f"{row['cosine']:.6f}"]


def _at_size(variants: int, methods: list[str], threads: int) -> list[dict[str, Any]]:
    """Every method on one store; the first is what the others are held against."""
    rows, best = [], None
    with tempfile.TemporaryDirectory(prefix="ddvi_fast_bench_") as folder:
        store = Path(folder) / "store"
        simulated_store(store, SAMPLES, variants)
        for method in methods:
            if method == "scikit-allel" and importlib.util.find_spec("allel") is None:
                rows.append({"variants": variants, "method": method, "missing": "not installed"})
                continue
            row = {"variants": variants, "method": method, **_in_process(method, store, threads)}
            scores = np.load(store.parent / "scores.npy").astype(np.float64)
            best = scores if best is None else best
            leading = slice(0, POPULATIONS - 1)  # the others belong to one flat spectrum, in which no direction is distinguished
            norms = np.linalg.norm(best[:, leading], axis=0) * np.linalg.norm(scores[:, leading], axis=0)
            row["cosine"] = float((np.abs((best * scores)[:, leading].sum(0)) / norms).min())
            row["variance"] = float((scores**2).sum() / (best**2).sum())
            rows.append(row)
            print(" | ".join(_cells(row)), flush=True)
    return rows


def _in_process(method: str, store: Path, threads: int) -> dict[str, Any]:
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "bench.genome_components", "--child", method, "--store", str(store), "--threads", str(threads)]
    ran = subprocess.run(command, env={**os.environ, **limits}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def _measured(method: str, path: Path, output: Path, threads: int) -> dict[str, Any]:
    """One fit in this process: how long it took, and the memory at its peak."""
    import torch

    torch.set_num_threads(threads)
    store = GenotypeStore(path)
    fit, size = _prepared(method, store)
    before = time.perf_counter(), time.process_time()
    scores = fit()
    took = time.perf_counter() - before[0], time.process_time() - before[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.save(output, scores)
    return {"seconds": took[0], "cpu_seconds": took[1], "peak_bytes": peak, "input_bytes": size}


def _prepared(method: str, store: GenotypeStore) -> tuple[Callable[[], np.ndarray], int]:
    """What is to be timed, and the bytes of what it works on."""
    if method.startswith("ours"):
        passes = {} if method == "ours" else {"max_passes": 7}
        warnings.simplefilter("ignore")  # that seven passes are too few
        return lambda: GenotypePCA(COMPONENTS, **passes).fit_transform(store), store.packed.nbytes
    codes = store.genotypes()
    if method == "scikit-allel":
        import allel

        turned = np.ascontiguousarray(codes.T).astype(np.int8)
        # Its scale is that of one allele, p (1 - p), where ours is that of both.
        return lambda: allel.randomized_pca(turned, n_components=COMPONENTS, scaler="patterson", random_state=0)[0] / 2**0.5, 4 * codes.size
    from sklearn.decomposition import PCA

    scaling = Scaling.of(store.counts)
    dense = codes.astype(np.float32)
    dense -= scaling.mean.numpy()
    dense *= scaling.scale.numpy()
    return lambda: PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit_transform(dense), dense.nbytes


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.genome_components", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", type=int, nargs="+", default=[20_000, 50_000], help="sizes at which all methods run")
    parser.add_argument("--large", type=int, default=1_000_000, help="size for ours alone; 0 leaves it out")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
