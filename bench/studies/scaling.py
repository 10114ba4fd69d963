"""Cost and benefit of several processes: `python -m bench.studies.scaling [--steps N]`; see `docs/clusters.md`.

The whole training step of the released code at MNIST shape runs on this machine's CPU, one thread a process. Measured are examples a second, bytes
that each process hands to collectives, the time to the first step, and the cost of a checkpoint that is written in the background. A model of the
step on 8, 64 and 512 GPUs follows from them; its law is compared with the measured step of two processes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import records
from bench.baselines.training import Sizes
from bench.steps import SEED, images
from bench.training import PROGRESS, build_objective, step_flops
from ddvi_fast import _markdown, distributed
from ddvi_fast.engine.checkpoint_manager import CheckpointManager
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

ROWS, WARM_UP = 128, 3
_STARTED = "SCALING_STARTED"  # environment variable: time at which torchrun was started
EXCHANGES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_single")

# Assumptions of the model, none of them measured here.
RATE = 40e12  # FLOP/s that small matrix products reach on a current GPU, bf16
FLOOR = 1.2e-3  # seconds of a captured step with nothing to compute: sequential chain, four updates
INPUT = 5e-6  # seconds to gather a batch that lives on the device
NODE = 8  # GPUs of a node
LINKS = {"within a node": (12e-6, 200e9), "between nodes": (25e-6, 40e9)}  # seconds of an exchange of nothing, bytes a second
GPUS = (1, 8, 64, 512)


def engines() -> dict[str, Callable[..., Engine]]:
    """Engines of several processes that are installed, by name."""
    found: dict[str, Callable[..., Engine]] = {"parallel": partial(Engine, capture=False, optimizer="auto")}
    if importlib.util.find_spec("deepspeed") is not None:
        from ddvi_fast.engine.deepspeed_engine import DeepSpeedEngine

        found["deepspeed"] = DeepSpeedEngine
    return found


def stepper(make: Callable[..., Engine], rows: int) -> Callable[[], None]:
    """A function that runs one step on this process's `rows` of each batch."""
    objective = build_objective(Sizes()).train()
    engine = make(objective, Optimisation(1e-3, "constant", max_norm=None), "cpu")
    x, draws = images(rows, Sizes().pixels, torch.device("cpu")), [Draws(SEED, distributed.rank() * rows)]

    def step() -> None:
        engine.run(x, PROGRESS, draws[0])
        draws[0] = draws[0].advance(rows * distributed.world_size())

    step.engine = engine
    return step


def seconds(step: Callable[[], None], count: int) -> list[float]:
    """Seconds of `count` steps."""
    times = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times[WARM_UP:]


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count collectives and the bytes that this process hands to them."""
    totals, before = {"exchanges": 0, "bytes": 0}, {name: getattr(torch.distributed, name) for name in EXCHANGES if hasattr(torch.distributed, name)}

    def counting(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            totals["exchanges"] += 1
            totals["bytes"] += max((value.numel() * value.element_size() for value in tensors), default=0)
            return exchange(*args, **kwargs)

        return call

    for name, exchange in before.items():
        setattr(torch.distributed, name, counting(exchange))
    try:
        yield totals
    finally:
        for name, exchange in before.items():
            setattr(torch.distributed, name, exchange)


def work(count: int) -> dict[str, Any]:
    """Measure each engine in this process: examples a second, collectives, seconds to the first step."""
    torch.set_num_threads(1)
    distributed.start("cpu")
    imports, found = time.time() - float(os.environ[_STARTED]), {}
    for name, make in {"local": partial(Engine, exchange=False), **engines()}.items():  # the local one exchanges nothing
        begun = time.time()
        step = stepper(make, ROWS)
        step()
        first = imports + time.time() - begun
        times = seconds(step, count)
        with counted() as totals:
            step()
        rows = ROWS * distributed.world_size()
        median = statistics.median(times)
        found[name] = {"examples a second": round(rows / median, 1), "step, ms": round(1e3 * median, 2)}
        found[name] |= {f"{key} a step": value for key, value in totals.items()}
        found[name] |= {"exchanges alone, ms": round(1e3 * exchange_seconds(totals, count), 2), "seconds from start to first step": round(first, 1)}
    distributed.stop()
    return found


def exchange_seconds(totals: dict[str, int], count: int) -> float:
    """Seconds of a step's collectives without the step, all of one size; 0 if there are none."""
    if not totals["exchanges"]:
        return 0.0
    values, times = torch.zeros(totals["bytes"] // 4 // totals["exchanges"]), []
    for _ in range(count):
        started = time.perf_counter()
        for _ in range(totals["exchanges"]):
            distributed.mean_over_processes(values)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def start(size: int, count: int) -> dict[str, Any]:
    """Run `work` in `size` processes and return what the first one measured."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    variables = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", _STARTED: str(time.time())}
    command = [*launcher, "-m", "bench.studies.scaling", "--work", "--steps", str(count)]
    ran = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def checkpoint_cost(count: int) -> dict[str, Any]:
    """Time ten steps of one process with a checkpoint in their middle relative to ten without, in turns."""
    step = stepper(partial(Engine, exchange=False), ROWS)
    with tempfile.TemporaryDirectory() as name:
        kept = CheckpointManager(Path(name), keep=2)
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(max(4, count // 3)):
            for saved in (True, False):
                started = time.perf_counter()
                for number in range(10):
                    step()
                    if saved and number == 4:
                        weights = dict(step.engine.objective.named_parameters())
                        kept.save(turn, {**weights, **step.engine.state()}, {"step": turn})
                times[saved].append(time.perf_counter() - started)
        kept.wait()
        size = sum(file.stat().st_size for file in (kept.folder / f"step-{turn:08d}").iterdir())
    with_one, without = statistics.median(times[True]), statistics.median(times[False])
    return {"checkpoint, bytes": size, "ten steps with a checkpoint against without": round(with_one / without, 3)}


def model(num_bytes: float, exchanges: float) -> list[dict[str, Any]]:
    """Predict the step on GPUs: matrix products, all-reduce, launches and the sequential chain, input.

    A collective of b bytes over P processes takes `latency log2 P + 2 b (P - 1) / P / bandwidth`, the law of a ring with a tree's latency.
    """
    rows = []
    for label, batch_of in (("128 in all", lambda gpus: 128 / gpus), ("128 a GPU", lambda gpus: 128), ("8192 a GPU", lambda gpus: 8192)):
        for gpus in GPUS:
            batch = batch_of(gpus)
            compute = step_flops(Sizes(), 1) * batch / RATE
            latency, bandwidth = LINKS["within a node" if gpus <= NODE else "between nodes"]
            steps = max(0, gpus - 1).bit_length()
            exchange = 0.0 if gpus == 1 else exchanges * latency * steps + 2 * num_bytes * (gpus - 1) / gpus / bandwidth
            whole = compute + exchange + FLOOR + INPUT
            rows.append({
                "batch": label, "GPUs": gpus, "compute, us": compute * 1e6, "exchange, us": exchange * 1e6, "step, us": whole * 1e6,
                "examples a second": batch * gpus / whole,
            })  # fmt: skip
    for row in rows:
        alone = next(other for other in rows if other["batch"] == row["batch"] and other["GPUs"] == 1)
        row["times one GPU"] = row["examples a second"] / alone["examples a second"]
        row["share of what GPUs could"] = row["times one GPU"] / row["GPUs"]
    return [{name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()} for row in rows]


def law(measured: dict[str, Any]) -> dict[str, float]:
    """The sum of a step without collectives and the collectives alone, beside the measured step of two processes."""
    together, found = measured["2 processes"], {}
    for name in together.keys() - {"local"}:
        found[f"{name}, two processes: step without exchanges plus exchanges, ms"] = round(
            together["local"]["step, ms"] + together[name]["exchanges alone, ms"], 2
        )
        found[f"{name}, two processes: step, ms"] = together[name]["step, ms"]
    return dict(sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each engine")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        found = work(options.steps)
        if os.environ["RANK"] == "0":
            print(json.dumps(found))
        return
    torch.set_num_threads(1)
    measured = {f"{size} processes": start(size, options.steps) for size in (1, 2)}
    plain = measured["2 processes"]["parallel"]
    record = {
        "kind": "bench.studies.scaling", **environment(), "command": f"python -m bench.studies.scaling --steps {options.steps}",
        "measured": measured, "one process": checkpoint_cost(options.steps), "law": law(measured),
        "model": model(plain["bytes a step"], plain["exchanges a step"]),
        "assumptions": {
            "FLOP a row": step_flops(Sizes(), 1), "FLOP/s": RATE, "seconds of an empty step": FLOOR, "seconds of input": INPUT,
            "GPUs of a node": NODE, "links (seconds, bytes a second)": LINKS,
        },
    }  # fmt: skip
    print(records.write(records.RESULTS / "scaling-cpu.json", record))


def markdown(record: dict[str, Any]) -> str:
    """Measured steps, the model's table and its assumptions."""
    about = "The training step of the released code at MNIST shape, CPU, one thread a process."
    lines = ["# Several processes", "", records.source(record), about, ""]
    steps = [[size.split()[0], name, *found.values()] for size, of_engines in record["measured"].items() for name, found in of_engines.items()]
    names = ("examples a second", "step, ms", "exchanges a step", "bytes a step", "exchanges alone, ms", "seconds to the first step")
    lines.append(_markdown.table(("processes", "engine", *names), steps))
    for part in ("one process", "first step", "law"):  # the first step was measured separately in earlier records
        lines += ["", *(f"- {name}: {value}" for name, value in record[part].items())] if part in record else []
    rows = [[f"{value:.3g}" if isinstance(value, float) else value for value in row.values()] for row in record["model"]]
    lines += ["", "## The model", "", _markdown.table(list(record["model"][0]), rows)]
    return "\n".join([*lines, "", "Assumptions:", "", *(f"- {name}: {value}" for name, value in record["assumptions"].items()), ""])


if __name__ == "__main__":
    main()
