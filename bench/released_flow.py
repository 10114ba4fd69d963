"""How far the released recipe's flow scatters from seed to seed: written out in plain PyTorch, and as `recipe=released method=iaf`.

    python -m bench.released_flow --seeds 6 --jobs 2 --data path/to/data

The second are the runs of bench/results/mnist-released-iaf. One core a run; a seed takes five minutes or more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.released_flow import ReleasedFlow, train
from ddvi_fast import data, evidence, likelihoods, metrics, priors
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.paper.tables import PAPER
from ddvi_fast.rng import Draws

RESULTS = Path(__file__).resolve().parent / "results"
POINTS, PRIOR_SAMPLES, EXAMPLES = 10_000, 10_000, 2000
BLUR = 0.03
FIGURES = {
    "evidence_blurred": "evidence, prior blurred", "elbo_released": "released ELBO", "knn_accuracy": "KNN accuracy",
    "latent_nll": "latent NLL", "latent_nll_narrow": "latent NLL, narrow", "mmd": "MMD",
}  # fmt: skip


class _Still(nn.Module):
    """The decoder without dropout, as the evidence takes it."""

    def __init__(self, model: ReleasedFlow) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, z: Tensor) -> Tensor:
        before, self.decoder.rate = self.decoder.rate, 0.0
        try:
            return self.decoder(z)[0]
        finally:
            self.decoder.rate = before


def run(seed: int, epochs: int, folder: str) -> dict[str, float]:
    """Train with a seed, and the figures that the table of the released recipe has."""
    torch.set_num_threads(1)
    dataset, prior = data.load("mnist", folder), priors.make("pinwheel")
    x, test = (dataset.inputs(split=split).flatten(1) for split in ("train", "test"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ReleasedFlow(prior.sample(POINTS, Draws(seed)))
        train(model, x, epochs)
        with torch.no_grad():
            return measure(model, prior, dataset, x, test, seed)


def measure(model: ReleasedFlow, prior: priors.Prior, dataset: data.Dataset, x: Tensor, test: Tensor, seed: int) -> dict[str, float]:
    latents, train_latents = (torch.cat([model.sample(part)[0] for part in rows.split(EXAMPLES)]) for rows in (test, x))
    samples = prior.sample(PRIOR_SAMPLES, Draws(seed, POINTS))
    rebuilt, divergence = model.terms(test[:EXAMPLES])
    blurred = LatentVariableModel(prior.blurred(BLUR), _Still(model), likelihoods.make("bernoulli"))
    return {
        "evidence_blurred": float(evidence.log_evidence_quadrature(blurred, test[:EXAMPLES]).mean()),
        "elbo_released": -float((rebuilt + divergence).mean()),
        "knn_accuracy": metrics.knn_accuracy(train_latents, dataset.labels(), latents, dataset.labels(split="test")),
        "latent_nll": metrics.latent_nll(latents, samples),
        "latent_nll_narrow": metrics.latent_nll(latents, samples, metrics.PRIOR_BANDWIDTHS),
        "mmd": metrics.mmd(torch.sigmoid(model.decoder(samples)[0]), test),
    }


def table(record: dict[str, Any]) -> str:
    """Every run, then mean and standard deviation of either kind, as Markdown."""
    kinds = (("plain PyTorch", record["plain"]), ("ours", record["ours"]))
    lines = [
        "# The released recipe's flow on MNIST under the pinwheel, from seed to seed",
        "",
        f"`{' '.join(record['command'])}`, commit {str(record.get('commit'))[:10]}, torch {record['versions']['torch']}.",
        "Written out in plain PyTorch (`bench/baselines/released_flow.py`), and with `recipe=released` (`bench/results/mnist-released-iaf`);",
        f"{record['epochs']} epochs. The released code's figures are those of one run. Spreads are standard deviations.",
        "",
        f"| run | {' | '.join(FIGURES.values())} |",
        f"| --- | {' | '.join('---' for _ in FIGURES)} |",
    ]
    for label, runs in kinds:
        lines += [f"| {label}, seed {seed} | {' | '.join(f'{figures[name]:.2f}' for name in FIGURES)} |" for seed, figures in enumerate(runs)]
    for label, runs in kinds:
        lines.append(f"| {label}, all {len(runs)} | {' | '.join(_spread([figures[name] for figures in runs]) for name in FIGURES)} |")
    released = record["released"]
    return "\n".join([*lines, f"| released code | {' | '.join(f'{released[name]:g}' for name in FIGURES)} |"]) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def ours_and_released() -> tuple[list[dict[str, float]], dict[str, float]]:
    """The figures of our runs, by seed, and of the released code's one, from our table, which has both."""
    stored = json.loads((RESULTS / "mnist-released-iaf" / "table.json").read_text(encoding="utf-8"))
    theirs = stored["paper"]["iaf"]["pinwheel"]
    runs = [run["figures"] for run in sorted(stored["runs"], key=lambda run: run["seed"])]
    return runs, {name: theirs[PAPER[name]][0] for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--data", default="data", help="folder of the data sets")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        plain = list(pool.map(partial(run, epochs=options.epochs, folder=options.data), range(options.seeds)))
    ours, released = ours_and_released()
    record = {**environment(), "epochs": options.epochs, "plain": plain, "ours": ours, "released": released}
    record["command"] = ["python", "-m", "bench.released_flow", "--seeds", str(options.seeds), "--epochs", str(options.epochs)]
    path = RESULTS / "released_flow.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(record), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
