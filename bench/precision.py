"""What narrow matrix products do to the bound: `python -m bench.precision [--epochs N]`.

Each family is trained on digits with its own settings, in float32. Then the mean bound of the test set is computed with products in
float32, bf16 and fp16, from the same weights and the same draws, so that what differs is rounding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddvi_fast.config.compose import compose
from ddvi_fast.engine.loop import train
from ddvi_fast.engine.recorder import Recorder
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.precision import PRECISIONS, products_in
from ddvi_fast.recipes.build import build
from ddvi_fast.rng import Draws
from ddvi_fast.training.run import load_dataset
from ddvi_fast.training.training import make_engines

RESULTS = Path(__file__).resolve().parent / "results"
FAMILIES = ("vae", "iaf", "h_iaf", "planar", "realnvp", "hamiltonian", "pis", "ddvi")
SAMPLES, LIMIT = 16, 0.02  # draws an example; nats


def biases(method: str, epochs: int) -> dict[str, float]:
    """Mean bound in float32, nats, and how far the others are from it."""
    config = compose(["dataset=digits", "prior=gaussian", f"method={method}", f"epochs={epochs}"])
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    train(experiment.phases, dataset, config.recipe.batch_size, config.seed, make_engines(config), Recorder(None))
    x, bounds = dataset.inputs(split="test"), {}
    for precision in PRECISIONS:
        with torch.no_grad(), products_in(precision, x.device)():
            bounds[precision] = experiment.posterior.log_weights(experiment.model, x, SAMPLES, Draws(1)).double().mean()
    exact = bounds.pop("float32")
    return {"float32": round(float(exact), 4), **{name: round(float(value - exact), 5) for name, value in bounds.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args(arguments).epochs
    torch.set_num_threads(1)
    found = {method: biases(method, epochs) for method in FAMILIES}
    (RESULTS / "precision-cpu.json").write_text(json.dumps({"epochs": epochs, "biases": found, "environment": environment()}, indent=2) + "\n")
    (RESULTS / "precision-cpu.md").write_text(as_text(found, epochs))
    print(as_text(found, epochs))


def as_text(found: dict[str, Any], epochs: int) -> str:
    """The figures for people."""
    source = f"Written by `python -m bench.precision --epochs {epochs}`: digits, Gaussian prior, test set, nats per example, the same draws."
    lines = [
        "# Narrow products and the bound",
        "",
        source,
        "",
        f"| family | bound in float32 | bf16 (limit {LIMIT}) | fp16 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {method} | {row['float32']:.3f} | {row['bf16']:+.5f} | {row['fp16']:+.5f} |" for method, row in found.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
