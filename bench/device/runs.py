"""Parts of the device check that train whole runs: one run, a table, processes of a launcher, and captured steps side by side.

A part whose libraries are missing tests nothing. `python -m bench.device.runs FOLDER SETTING ...` is what a launcher's processes run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.baselines.training import Sizes
from bench.steps import OurStep, images
from bench.training import PROGRESS, SMALL, build_objective
from ddvi_fast.training.turns import on_stream

ROOT = Path(__file__).resolve().parents[2]
SIDE_BY_SIDE, GOAL = 8, 5.0  # runs side by side, and how many times the throughput of one they are to have
_NEEDED = ("omegaconf", "sklearn")  # by runs
_SHORT = ("dataset=digits", "progress=off", "tensorboard=false", "figures=false", "prior.resolution=50", "evaluation.iwae_samples=10")
_TINY = ("limit=100", "recipe.batch_size=50", "epochs=1", "evaluation.limit=20", "evaluation.elbo_samples=2", "evaluation.prior_samples=100")

Result = dict[str, Any]


def settings(quick: bool, *more: str) -> list[str]:
    """Settings of a short run of the default recipe."""
    return [*_SHORT, *(_TINY if quick else ("epochs=3",)), *more]


def with_runs(part: Callable[[Any], Iterator[Result]]) -> Callable[[Any], Iterator[Result]]:
    """A part that tests nothing where a library that runs need is missing."""

    def checked(setting: Any) -> Iterator[Result]:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        return iter([{"ok": None, "summary": f"0 run; {', '.join(missing)} is not installed"}]) if missing else part(setting)

    return checked


@with_runs
def one_run(setting: Any) -> Iterator[Result]:
    """Train and evaluate the default recipe in float32 and bf16: metrics are finite, and those of recorded steps are those of steps that are not."""
    found: dict[str, dict[str, float]] = {}
    captured = ("true", "false") if setting.device.type == "cuda" else ("false",)
    names = {f"{precision}, capture={capture}": (precision, capture) for precision in ("float32", "bf16") for capture in captured}
    for name, (precision, capture) in names.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = _trained(setting, f"run_dir={folder}/run", f"precision={precision}", f"capture={capture}")
        bad = [f"{run} {metric}" for run, metrics in found.items() for metric, value in metrics.items() if not math.isfinite(value)]
        elbo = [metrics["elbo"] for metrics in found.values()]
        apart = max(elbo) - min(elbo)
        summary = f"{len(found)} of {len(names)} runs, ELBO {', '.join(f'{run} {value:.2f}' for run, value in zip(found, elbo, strict=True))}"
        yield {"ok": False if bad or apart > 1.0 else len(found) == len(names) or None, "summary": summary, "failed": bad, "metrics": found}


def _trained(setting: Any, *more: str) -> dict[str, float]:
    from ddvi_fast.config.compose import compose
    from ddvi_fast.training.run import run

    return run(compose(settings(setting.quick, "method=ddvi", f"device={setting.device}", *more))).metrics


@with_runs
def table(setting: Any) -> Iterator[Result]:
    """Two cells of a table side by side have the weights of two runs one after the other, bit for bit."""
    from ddvi_fast.config.compose import compose
    from ddvi_fast.training.run import run
    from ddvi_fast.training.turns import in_turns

    with tempfile.TemporaryDirectory() as folder:

        def cells(name: str) -> list[Any]:
            made = [settings(setting.quick, f"method={method}", f"device={setting.device}") for method in ("vae", "ddvi")]
            return [compose([*one, f"run_dir={folder}/{name}/{number}"]) for number, one in enumerate(made)]

        begun = time.perf_counter()
        for config in cells("alone"):
            run(config)
        alone, begun = time.perf_counter() - begun, time.perf_counter()
        list(in_turns(run, cells("together"), 2, setting.device))
        together = time.perf_counter() - begun
        weights = [sorted(path.read_bytes() for path in (Path(folder) / name).rglob("final/*.safetensors")) for name in ("alone", "together")]
    equal = bool(weights[0]) and weights[0] == weights[1]
    summary = f"2 runs, {'equal' if equal else 'UNEQUAL'} weights side by side and one after the other; {together:.1f} s and {alone:.1f} s"
    yield {"ok": equal, "summary": summary}


@with_runs
def launched(setting: Any) -> Iterator[Result]:
    """Two processes of a launcher on one device, which exchange by gloo, and one alone, also with DeepSpeed if it is installed; in bf16."""
    deepspeed = importlib.util.find_spec("deepspeed") is not None
    note = "" if deepspeed or setting.quick else "; DeepSpeed is not installed"
    jobs = {"2 processes": (2, "engine=parallel")}
    if setting.device.type == "cuda":  # one process is there for NCCL
        jobs = {"1 process": (1, "engine=parallel"), **jobs}
    if deepspeed and not setting.quick:
        jobs = {"1 process, DeepSpeed": (1, "engine=deepspeed"), **jobs}
    passed, failed = [], []
    end = time.monotonic() + setting.seconds
    for name, (processes, engine) in jobs.items():
        error = _launch(processes, setting, end - time.monotonic(), f"device={setting.device}", engine, "precision=bf16", "optimiser=auto")
        if error is not None:
            (failed if error else passed).append(f"{name}: {error}" if error else name)
        missing = len(jobs) - len(passed) - len(failed)  # what runs out of time has not failed
        summary = f"{len(passed) + len(failed)} run, {len(passed)} passed, {missing} not run{note}"
        summary += f"; the first failure: {failed[0]}" if failed else ""
        yield {"ok": False if failed else None if missing else True, "summary": summary, "failed": failed}


def _launch(processes: int, setting: Any, seconds: float, *more: str) -> str | None:
    """Train a short run in processes of torchrun; returns what went wrong, the empty string if nothing did, None if the time was too short."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "bench.device.runs"]
        command = [*launcher, folder, *settings(setting.quick, "method=ddvi", *more)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("metrics-*.json"))]
    if ran.returncode:
        return next((line for line in reversed(ran.stderr.splitlines()) if "Error" in line), f"exit code {ran.returncode}")[:300]
    if len(results) != processes or any(result != results[0] for result in results):
        return "processes with different metrics"
    return "" if all(map(math.isfinite, results[0].values())) else "metrics that are not finite"


def side_by_side(setting: Any) -> Iterator[Result]:
    """Throughput of eight captured training steps, each on a stream of its own, against that of one."""
    sizes, rows, turns = (SMALL, 16, 4) if setting.quick else (Sizes(), 128, 100)
    x, streams = images(rows, sizes.pixels, setting.device), [on_stream(setting.device) for _ in range(SIDE_BY_SIDE)]
    steps = [OurStep(build_objective(sizes, setting.device), setting.device, PROGRESS) for _ in range(SIDE_BY_SIDE)]
    rates = {}
    for count in (1, SIDE_BY_SIDE):
        for warm in (True, False):
            _wait(setting.device)
            begun = time.perf_counter()
            for _ in range(5 if warm else turns):
                for stream, step in zip(streams[:count], steps, strict=False):
                    with stream:
                        step(x)
            _wait(setting.device)
            rates[count] = count * turns / (time.perf_counter() - begun)
    gain = rates[SIDE_BY_SIDE] / rates[1]
    summary = f"{rates[1]:.0f} steps a second of one run, {rates[SIDE_BY_SIDE]:.0f} of {SIDE_BY_SIDE} side by side: {gain:.1f} times, goal {GOAL:g}"
    yield {"ok": None if setting.device.type != "cuda" else True, "summary": summary, "rates": {str(count): rate for count, rate in rates.items()}}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str]) -> None:
    """Train a run in one of a launcher's processes, and write its metrics."""
    from ddvi_fast.config.compose import compose
    from ddvi_fast.training.run import run

    folder, *given = arguments
    config = compose([*given, f"run_dir={folder}/run"])
    alone = int(os.environ["WORLD_SIZE"]) == 1
    if alone and config.device.startswith("cuda"):
        _exchange(config.device)
    metrics = run(dataclasses.replace(config, timeout=120.0)).metrics
    target = Path(folder) / f"metrics-{os.environ['RANK']}.json"
    target.write_text(json.dumps({name: value for name, value in metrics.items() if "seconds" not in name}), encoding="utf-8")


def _exchange(device: str) -> None:
    """Collectives of NCCL in one process, in float32 and bf16."""
    from torch import distributed as dist

    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
    for dtype in (torch.float32, torch.bfloat16):
        value = torch.arange(8.0, device=device).to(dtype)
        parts = [torch.empty_like(value)]
        dist.broadcast(value, 0)
        dist.all_reduce(value)
        dist.all_gather(parts, value)
        assert torch.equal(parts[0].float().cpu(), torch.arange(8.0)), f"NCCL in {dtype}"
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
