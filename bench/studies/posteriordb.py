"""Twelve posteriors of posteriordb, approximated from their log densities and compared with their reference draws.

    python -m bench.studies.posteriordb run --data data --jobs 2         # every cell that is not there: an hour of two cores
    python -m bench.studies.posteriordb run --names kidiq --methods diffusion
    python -m bench.studies.posteriordb table                            # adds them to bench/results/posteriordb.json and .md

A cell is a file in `--cells`. Diffusion, flow and mean field have the same number of training steps, samples per step and rate.
`flow` needs zuko, `nuts` Pyro.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import records
from bench.studies import pathfinder
from ddvi_fast import _markdown, rng
from ddvi_fast.inference import Architecture, ImportanceSample, Support, Training, fit_posterior
from ddvi_fast.inference.compare import c2st, moment_errors, standardized
from ddvi_fast.inference.model import FlatModel
from ddvi_fast.inference.start import gaussian_start
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.rng import Draws
from examples import posteriordb

METHODS = {
    "diffusion": "diffusion",
    "flow": "flow (splines)",
    "full": "full-rank Gaussian",
    "mean_field": "mean-field Gaussian",
    "pathfinder": "Gaussians of many starts (Pathfinder)",
    "nuts": "NUTS (Pyro)",
}
TRAINING = Training(steps=4000, batch_size=256, lr=2e-3)
DRAWS, TESTED = 10_000, 2000  # draws for moments and weights, and for the classifier
NUTS_WARMUP, NUTS_DRAWS = 500, 1000
LIMITS = {"mean": 0.1, "deviation": 0.1, "pareto_k": 0.7, "c2st": 0.55}


class Counted:
    """A model that counts the parameters at which its log density was computed."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0

    def log_joint(self, x: Any, z: Any) -> Tensor:
        value = self.model.log_joint(x, z)
        self.calls += value.numel()
        return value


def cell(name: str, method: str, data: Path, seed: int = 0) -> dict[str, Any]:
    """All figures of one method on one posterior."""
    torch.set_num_threads(1)
    problem, (_, reference) = posteriordb.load(name, data / "posteriordb"), posteriordb.reference(name, data / "posteriordb")
    model, start = Counted(problem.model), time.process_time()
    z, weighted = _FITS.get(method, _variational)(method, model, problem, seed)
    seconds, calls = time.process_time() - start, model.calls
    draws = problem.model.reported(z).double()
    mean, deviation = moment_errors(draws, reference)
    tested = [part[:TESTED].float() for part in _distinct(draws, reference)]
    found = {"mean": mean, "deviation": deviation, "c2st": c2st(*tested), "wasserstein": wasserstein(*tested)}
    if weighted is not None:
        sample: ImportanceSample = weighted()
        found |= {"effective": sample.effective_sample_size / DRAWS, "pareto_k": sample.pareto_k}
    return {"name": name, "method": method, "seed": seed, **found, "calls": calls, "seconds": seconds}


def wasserstein(draws: Tensor, reference: Tensor) -> float:
    """Compute the largest Wasserstein-1 distance of a marginal, in standard deviations of the reference."""
    count = min(len(draws), len(reference))
    ordered = [part.sort(0).values for part in standardized(draws[:count], reference[:count])]
    return float((ordered[0] - ordered[1]).abs().mean(0).max())


def _distinct(draws: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets without columns that another one determines: the second entry of a simplex of two."""
    correlated = torch.corrcoef(reference.T).abs() > 1 - 1e-9
    kept = [column for column in range(reference.shape[1]) if not bool(correlated[column, :column].any())]
    return draws[:, kept], reference[:, kept]


def _variational(method: str, model: Counted, problem: posteriordb.Problem, seed: int) -> tuple[Any, Any]:
    """Draws of a fitted posterior, and its importance sample."""
    family = "gaussian" if method == "mean_field" else method
    fitted = fit_posterior(
        model, problem.x, support=problem.model.support, architecture=Architecture(family=family), training=TRAINING, seed=seed
    )  # fmt: skip
    return fitted.sample(DRAWS), lambda: fitted.importance_sample(DRAWS, seed=seed + 1)


@torch.no_grad()
def _full_rank(method: str, model: Counted, problem: posteriordb.Problem, seed: int) -> tuple[Any, Any]:
    """Draws of the Gaussian from which the other fits start."""
    support = Support(problem.model.support)
    with torch.enable_grad():
        whitening = gaussian_start(model, problem.x, support, seed, torch.device("cpu"))
    flat, noise = FlatModel(model, support, whitening), rng.normal(Draws(seed + 1), (DRAWS, support.dim), rng.START)
    z, _ = support.constrain(whitening(noise))
    log_q = -0.5 * (noise.square() + torch.tensor(2 * torch.pi).log()).sum(-1)
    return z, lambda: ImportanceSample.of(z, flat.log_joint(problem.x, noise) - log_q)


def _pathfinder(method: str, model: Counted, problem: posteriordb.Problem, seed: int) -> tuple[Any, Any]:
    """Draws of Gaussians of many starts, resampled by their weights, and the weighted ones."""
    support = Support(problem.model.support)
    zeros = torch.zeros(support.dim, dtype=torch.float64)
    flat = FlatModel(model, support, Whitening(zeros, torch.diag(zeros + 1)))
    u, log_weights = pathfinder.draw(lambda u: flat.log_joint(problem.x, u), support.dim, DRAWS, seed + 1)
    sample = ImportanceSample.of(u, log_weights)
    order = rng.permutation(Draws(seed), DRAWS)  # a part of the draws is compared, and resampling keeps copies together
    return support.constrain(sample.resample(DRAWS, seed)[order])[0], lambda: sample


def _nuts(method: str, model: Counted, problem: posteriordb.Problem, seed: int) -> tuple[Any, Any]:
    """Draws of one chain of the No-U-Turn sampler in unconstrained coordinates."""
    import pyro
    from pyro.infer import MCMC, NUTS

    support = Support(problem.model.support)

    def potential(z: dict[str, Tensor]) -> Tensor:
        constrained, log_det = support.constrain(z["u"].unsqueeze(0))
        return -(model.log_joint(problem.x, constrained) + log_det)[0]

    pyro.set_rng_seed(seed)
    kernel = NUTS(potential_fn=potential, target_accept_prob=0.9)
    initial = {"u": 0.1 * rng.normal(Draws(seed), (1, support.dim), rng.START)[0]}
    sampler = MCMC(kernel, NUTS_DRAWS, warmup_steps=NUTS_WARMUP, initial_params=initial, disable_progbar=True)
    sampler.run()
    z, _ = support.constrain(sampler.get_samples()["u"])
    return z, None


_FITS = {"full": _full_rank, "nuts": _nuts, "pathfinder": _pathfinder}
HEADINGS = (
    "posterior", "D", "method", "mean", "deviation", "C2ST", "Wasserstein", "ESS", "Pareto k", "density calls", "CPU seconds", "within limits",
)  # fmt: skip


def within(found: dict[str, Any]) -> bool:
    """Whether all figures of a cell that has them are within the limits."""
    return all(found[name] <= limit for name, limit in LIMITS.items() if name in found)


def markdown(record: dict[str, Any]) -> str:
    """The table of all cells."""
    cells = sorted(record["cells"], key=lambda found: (found["name"], list(METHODS).index(found["method"])))
    rows = [
        [
            found["name"].split("-", 1)[1], str(found["dim"]), METHODS[found["method"]],
            *(f"{found[key]:.3f}" for key in ("mean", "deviation", "c2st", "wasserstein")),
            *((f"{found['effective']:.0%}", f"{found['pareto_k']:.2f}") if "effective" in found else ("", "")),
            f"{found['calls']:,}", f"{found['seconds']:.0f}", "yes" if within(found) else "no",
        ]
        for found in cells
    ]  # fmt: skip
    counts = {method: [within(found) for found in cells if found["method"] == method] for method in METHODS}
    told = [f"{METHODS[method]}: {sum(found)} of {len(found)} within all limits." for method, found in counts.items() if found]
    made = sorted({((found["commit"] or "none")[:10], found["processor"]) for found in cells})
    about = [
        "Largest error of a mean and Wasserstein distance of a marginal, in standard deviations of the reference, and relative error of a deviation.",
        f"Limits: {', '.join(f'{name.replace(chr(95), chr(32))} {limit}' for name, limit in LIMITS.items())}. Training: {TRAINING.steps} steps of "
        f"{TRAINING.batch_size} samples at rate {TRAINING.lr}, chosen on eight schools, after a Gaussian start: the full-rank "
        "Gaussian, and one without correlations for the mean field.",
        f"Pathfinder: the best Gaussians of {pathfinder.PATHS} paths of L-BFGS, {DRAWS:,} samples, resampled by their weights. NUTS: one chain of "
        f"{NUTS_WARMUP} and {NUTS_DRAWS:,} steps, from near 0.",
        *told,
        *(f"Commit {commit}, {processor}, one thread." for commit, processor in made),
    ]
    return "\n".join(["# Posteriors of posteriordb", "", *about, "", _markdown.table(HEADINGS, rows), ""])


def _run(job: tuple[str, str, Path, Path, int]) -> None:
    name, method, data, cells, seed = job
    path = cells / f"{name}-{method}-{seed}.json"

    def compute() -> dict[str, Any]:
        return {**cell(name, method, data, seed), "dim": len(posteriordb.reference(name, data / "posteriordb")[0])}

    if found := records.keep_cell(path, compute):
        print(name, method, *(f"{key} {value:.3g}" for key, value in found.items() if isinstance(value, float)), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("runs/posteriordb"), help="folder of the cells")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compute the cells that are not there")
    run.add_argument("--data", type=Path, default=Path("data"), help="folder of the reference draws")
    run.add_argument("--names", nargs="+", default=posteriordb.NAMES, help="posteriors, by the start of their names")
    run.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=METHODS)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    commands.add_parser("table", help="write the results and the table")
    options = parser.parse_args(arguments)
    if options.command == "run":
        for name in options.names:
            if not any(known.startswith(name) for known in posteriordb.NAMES):
                parser.error(f"--names: expected the start of one of {', '.join(posteriordb.NAMES)}, got {name!r}")
        names = [name for name in posteriordb.NAMES if name.startswith(tuple(options.names))]
        jobs = [(name, method, options.data, options.cells, options.seed) for method in options.methods for name in names]
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            pool.map(_run, jobs, chunksize=1)
        return 0
    records.add_cells("posteriordb", options.cells, ("name", "method", "seed"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
