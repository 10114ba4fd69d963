"""Seconds from `import` to the first sample of a saved posterior, beyond torch's own import, in fresh interpreters.

python -m bench.first_sample [--repeats N]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.records import RESULTS
from ddvi_fast import DDVI, fit_posterior
from ddvi_fast._arguments import Parser
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.inference import Model, Training

LIMIT = 3.0  # seconds
MEASURE = """
import json, sys, time
import torch
start = time.perf_counter(), time.process_time()
{body}
print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]))
"""
BODIES = {
    "estimator": "import numpy; from ddvi_fast import DDVI; DDVI.load(sys.argv[1]).posterior_samples(numpy.zeros((1, 5), numpy.float32), 1)",
    "own model": "from ddvi_fast import inference; inference.load(sys.argv[1]).sample(1)",
}


def save_estimator(path: Path) -> None:
    """A fitted estimator of five columns."""
    DDVI(epochs=1).fit(np.random.default_rng(0).normal(size=(200, 5))).save(path)


def save_own_model(path: Path) -> None:
    """A posterior of a mean given five numbers."""

    def simulate(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.randn(n, 1)
        return mean, mean + torch.randn(n, 5)

    fit_posterior(Model(simulate=simulate), torch.zeros(5), training=Training(steps=20, batch_size=64)).save(path)


SAVED = {"estimator": save_estimator, "own model": save_own_model}


def measure(kind: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Median, and all, of seconds by the clock on the wall and of the processor."""
    path = folder / kind.replace(" ", "-")
    SAVED[kind](path)
    command = [sys.executable, "-c", MEASURE.format(body=BODIES[kind]), str(path)]
    taken = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)]
    wall, processor = zip(*taken, strict=True)
    return {"median": statistics.median(wall), "median_cpu": statistics.median(processor), "wall": wall, "cpu": processor}


def main() -> None:
    parser = Parser(prog="bench.first_sample", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: measure(kind, Path(folder), options.repeats) for kind in SAVED}
    record = {**environment(), "goal": LIMIT, "seconds": found}
    (RESULTS / "first_sample.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for kind, seconds in found.items():
        verdict = "" if seconds["median"] < LIMIT else ", missed"
        print(f"{kind}: {seconds['median']:.2f} s, {seconds['median_cpu']:.2f} s of the processor (goal {LIMIT:g}{verdict})")


if __name__ == "__main__":
    main()
