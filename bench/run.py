"""Runner of a set of benchmark cases: prints the table and writes the record (`ddvi-fast bench`)."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from bench import cases, gpu_figures
from bench.ceilings import measure_ceilings
from bench.memory import peak_bytes, scaling
from bench.problem import Problem
from bench.records import KIND, RESULTS, write
from bench.timing import time_together
from ddvi_fast import _checks
from ddvi_fast.cli.bench import PROVIDERS
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.native import loader
from ddvi_fast.precision import support


def main(options: argparse.Namespace, command: str) -> None:
    """Run the benchmarks that the options of `ddvi-fast bench` choose.

    Args:
        options: Parsed options; `ddvi_fast.cli.bench` has their names.
        command: Command line to record (str).

    Raises:
        InputError: options that do not fit, or an existing results file.
    """
    device = torch.device(options.device)
    name = options.output or f"{options.set}-{device.type}"
    path = RESULTS / f"{name}.json"
    _checks.require("/" not in name, "--output", "a name, not a path", name)
    _checks.require(options.overwrite or not path.exists(), "--output", "a new name", name, "--overwrite replaces it")
    if options.threads is not None:
        _checks.require(options.threads >= 1, "--threads", "at least 1", options.threads)
        torch.set_num_threads(options.threads)
    chosen = [case for case in cases.in_set(options.set) if options.only in case.name]
    _checks.require(bool(chosen), "--only", "a part of a case's name", options.only)
    record = run(options.set, chosen, device, options.providers, options.seconds, memory=not options.no_memory, command=command)
    print(write(path, record))
    if figures := gpu_figures.table(chosen):
        print(figures)
    print(f"written: {path}\nwritten: {path.with_suffix('.md')}")


def run(
    name: str,
    chosen: Sequence[cases.Case],
    device: torch.device,
    providers: Sequence[str] = tuple(PROVIDERS),
    seconds: float = 2.0,
    *,
    memory: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Measure cases and return the record: machine, versions, commit, ceilings, and every case with its providers."""
    if support("bf16", device) != "native":
        print("bf16: left out, because this device only emulates its products", flush=True)
        providers = [provider for provider in providers if provider != "ours_bf16"]
    print(f"[0/{len(chosen)}] ceilings of the machine", flush=True)
    record = {
        "kind": KIND,
        "set": name,
        **environment(),
        "command": command,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "instructions": loader.isa() if device.type == "cpu" and loader.available()[0] else None,
        "apart": device.type == "cpu",
        "ceilings": measure_ceilings(device),
        "cases": [],
    }
    for number, case in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {case.name}", flush=True)
        start = time.perf_counter()
        record["cases"].append((_run_apart if record["apart"] else run_case)(case, device, providers, seconds, memory=memory))
        print(f"[{number}/{len(chosen)}] {case.name}: {time.perf_counter() - start:.0f} s", flush=True)
    # Measured twice, so that another program that ran for a moment does not lower a ceiling.
    again = measure_ceilings(device)
    record["ceilings"] = {key: max(value, again[key]) for key, value in record["ceilings"].items()}
    if memory and device.type == "cpu" and name != "quick":
        record["memory scaling"] = scaling(torch.get_num_threads())
    return record


def _run_apart(case: cases.Case, device: torch.device, providers: Sequence[str], seconds: float, *, memory: bool) -> dict[str, Any]:
    """Run `run_case` in its own process, because the allocator's state after earlier cases would affect the times of later ones."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(run_case, case, device, providers, seconds, memory=memory).result()


def run_case(case: cases.Case, device: torch.device, providers: Sequence[str], seconds: float, *, memory: bool = True) -> dict[str, Any]:
    """Check every provider of a case, and time those that pass in turns."""
    torch._dynamo.reset()  # after other sizes torch.compile would compile for dynamic sizes
    problem = case.build(device)
    wanted = [name for name in case.providers if name in providers]
    results: dict[str, dict[str, Any]] = {name: checked(problem, name) for name in wanted}
    passed = [name for name in wanted if "failed" not in results[name]]
    timings = time_together({name: problem.provider(name) for name in passed}, device, seconds=seconds)
    for name, timing in timings.items():
        results[name] |= dataclasses.asdict(timing)
    if memory:
        for name, peak in _peaks(case, passed, device).items():
            results[name]["peak_bytes"] = peak
    return {
        "name": case.name,
        "operation": case.operation,
        "shape": dict(case.shape),
        "backward": case.backward,
        "work": dataclasses.asdict(problem.work),
        "goals": dict(case.goals),
        "most_bytes": case.most_bytes,
        "results": results,
    }


def checked(problem: Problem, name: str) -> dict[str, str]:
    """Check a provider: an empty result if its numbers are right, otherwise ``failed`` with the reason; such a provider is not timed."""
    try:
        problem.check(name)
    except Exception as error:  # a provider may fail in any way, and the others must still be measured
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]}
    return {}


def _peaks(case: cases.Case, passed: Sequence[str], device: torch.device) -> dict[str, int | None]:
    try:
        return peak_bytes(case, passed, device, torch.get_num_threads())
    except (RuntimeError, OSError) as error:
        print(f"{case.name}: {error}", flush=True)
        return dict.fromkeys(passed)
