"""Launch options of kernels: candidates for one kernel at a time, each compared with the options in use.

    python3 -m bench.device.tune --predict               # ranks all candidates by the static model, without a GPU
    python3 -m bench.device.tune --best 3                # times the three candidates of each sweep that the model ranks first
    python3 -m bench.device.tune --only "chain backward" --profile

Candidates are compiled in parallel first, which takes most of the time. With --profile the time of each kernel of a case is printed.
"""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench import cases
from bench.device import predictions
from bench.timing import time_together

Options = dict[str, Any]
_SMALL, _LARGE = {"N": 128}, {"N": 65_536}
_CHAIN = {"T": 40, "D": 2, "C": 2, "H": 128, "kind": "ancestral"}


@dataclass(frozen=True)
class Sweep:
    """Values to try in place of an attribute of a module, in one case.

    Args:
        name: Name of the sweep.
        operation, shape, backward, provider: The case that is timed.
        module: Module of `ddvi_fast.kernels`.
        attribute: Attribute of the module: a function that returns options, or a number.
        candidates: Changes of the options, or numbers.
    """

    name: str
    operation: str
    shape: Options
    backward: bool
    provider: str
    module: str
    attribute: str
    candidates: tuple[Any, ...]

    @property
    def case(self) -> cases.Case:
        return cases.Case(self.operation, tuple(self.shape.items()), self.backward, frozenset())

    def call(self, device: torch.device) -> Callable[[], object]:
        return self.case.build(device).provider(self.provider)


_ROWS = tuple({"BN": rows, "num_warps": warps} for rows, warps in ((32, 4), (64, 4), (64, 8), (128, 4), (128, 8)))
_MMD = tuple(
    {"DEPTH": depth, "STAGES": stages, "num_warps": warps} for depth, stages, warps in ((32, 2, 8), (32, 4, 8), (64, 2, 8), (64, 3, 8), (32, 3, 4))
)
_KDE = tuple({"ROWS": rows, "POINTS": points, "num_warps": rows // 32} for rows, points in ((128, 16), (64, 32), (64, 16), (256, 16), (256, 32)))

SWEEPS = (
    *(
        Sweep(f"chain {direction}, {words} rows{low}", "chain", {**rows, **_CHAIN}, back, provider, f"chain_{direction}", "chain_options", _ROWS)
        for direction, back in (("forward", False), ("backward", True))
        for words, rows in (("few", _SMALL), ("many", _LARGE))
        for provider, low in (("ours", ""), ("ours_bf16", " in bf16"))
    ),
    *(
        Sweep(f"weight gradient, {words} rows", "chain", {**rows, **_CHAIN}, True, "ours_bf16", "weight_gradient", attribute, candidates)
        for words, rows in (("few", _SMALL), ("many", _LARGE))
        for attribute, candidates in (("weight_options", _ROWS), ("_PROGRAMS", (66, 264)))
    ),
    *(
        Sweep("sleep", "sleep", {**_LARGE, "T": 40, "D": 2}, True, "ours_bf16", "sleep", attribute, candidates)
        for attribute, candidates in (("chain_options", _ROWS), ("_PROGRAMS", (132, 528)))
    ),
    Sweep("discrepancy", "mmd", {"N": 10_000, "M": 10_000, "P": 784}, False, "ours", "mmd", "product_options", _MMD),
    Sweep("discrepancy, its gradient", "mmd", {"N": 10_000, "M": 10_000, "P": 784}, True, "ours", "mmd", "product_options", _MMD),
    Sweep("density", "kde", {"N": 8192, "M": 10_000, "D": 2}, True, "ours", "kde", "launch_options", _KDE),
    Sweep("density, its gradient", "kde", {"N": 8192, "M": 10_000, "D": 2}, True, "ours", "kde_backward", "launch_options", _KDE),
)  # fmt: skip


@contextmanager
def replaced(sweep: Sweep, candidate: Any) -> Iterator[None]:
    """Replace the attribute by the candidate's values; None leaves it as it is."""
    module = importlib.import_module(f"ddvi_fast.kernels.{sweep.module}")
    before = getattr(module, sweep.attribute)
    after = before
    if candidate is not None:
        after = (lambda *sizes: {**before(*sizes), **candidate}) if callable(before) else candidate
    setattr(module, sweep.attribute, after)
    try:
        yield
    finally:
        setattr(module, sweep.attribute, before)


def predict_one(job: tuple[Sweep, int | None]) -> float | str:
    """Predicted milliseconds of a candidate, or of the options in use; or the reason why there are none."""
    sweep, number = job
    try:
        with replaced(sweep, None if number is None else sweep.candidates[number]):
            found = predictions.predicted(predictions.calls(sweep.case, predictions.PRECISIONS[sweep.provider]))
    except Exception as error:  # a candidate may fail to compile in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
    missing = [each.kernel for each in found if each.microseconds is None]
    return f"no prediction of {missing[0]}" if missing else sum(each.microseconds or 0.0 for each in found) / 1000


def ranked(sweep: Sweep, times: Sequence[float | str]) -> list[int]:
    """Numbers of the candidates, those with the least predicted time first, those without a prediction last in their order."""
    return sorted(range(len(sweep.candidates)), key=lambda number: time if isinstance(time := times[number], float) else math.inf)


def show_predictions(sweep: Sweep, in_use: float | str, times: Sequence[float | str]) -> None:
    """Print the predicted time of each candidate."""
    print(f"\n{sweep.name} ({sweep.attribute}), predicted: {_milliseconds(in_use)} in use")
    for number in ranked(sweep, times):
        print(f"  {_milliseconds(times[number])}  {sweep.candidates[number]}")


def _milliseconds(time: float | str) -> str:
    return f"{time:8.3f} ms" if isinstance(time, float) else time


def compile_one(job: tuple[Sweep, int, str]) -> str:
    """Run a candidate once, so that its kernels are in Triton's cache; returns the error, or an empty text."""
    sweep, number, device = job
    try:
        with replaced(sweep, sweep.candidates[number]):
            flat(sweep.call(torch.device(device))()).sum().item()
    except Exception as error:  # a candidate may fail on the device in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
    return ""


def run(sweep: Sweep, failures: Sequence[str], device: torch.device, seconds: float) -> None:
    """Time the candidates without a failure, in turns with the options in use, and print a line for each."""
    call = sweep.call(device)
    expected = flat(call())

    def timed(candidate: Any) -> Callable[[], object]:
        def work() -> object:
            with replaced(sweep, candidate):
                return call()

        return work

    providers = {"in use": timed(None)}
    for number, candidate in enumerate(sweep.candidates):
        if not failures[number]:
            apart = float((flat(timed(candidate)()) - expected).norm() / expected.norm())
            providers[f"{candidate}{'' if apart < 1e-2 else f', WRONG by {apart:.1e}'}"] = timed(candidate)
    times = {name: timing.median for name, timing in time_together(providers, device, seconds=seconds).items()}
    print(f"\n{sweep.name} ({sweep.attribute}): {times['in use']:.3f} ms in use")
    for name, value in sorted(times.items(), key=lambda item: item[1]):
        if name != "in use":
            print(f"  {value:8.3f} ms, x {times['in use'] / value:.2f}  {name}")
    for candidate, reason in zip(sweep.candidates, failures, strict=True):
        if reason:
            print(f"  failed: {candidate}: {reason}")


def flat(results: Any) -> Tensor:
    """All numbers that a call returns."""
    values = results.values() if isinstance(results, dict) else results if isinstance(results, (tuple, list)) else [results]
    return torch.cat([value.detach().double().flatten() for value in values if isinstance(value, Tensor)])


def profile(sweep: Sweep, device: torch.device) -> None:
    """Print the milliseconds of each kernel in a call."""
    call = sweep.call(device)
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        for _ in range(3):
            call()
        torch.cuda.synchronize(device)
    spent = sorted(((event.self_device_time_total / 3000, event.count // 3, event.key) for event in recorded.key_averages()), reverse=True)
    print(f"\n{sweep.name}, its kernels: " + "; ".join(f"{name[:40]} {time:.3f} ms in {count}" for time, count, name in spent[:8]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="sweeps whose name contains TEXT")
    parser.add_argument("--processes", type=int, default=14, help="processes that compile")
    parser.add_argument("--seconds", type=float, default=0.05, help="seconds of measurements for each candidate")
    parser.add_argument("--profile", action="store_true", help="print the time of each kernel")
    parser.add_argument("--predict", action="store_true", help="rank the candidates by the static model and time nothing")
    parser.add_argument("--best", type=int, metavar="N", help="time only the N candidates of each sweep that the static model ranks first")
    options = parser.parse_args()
    if not (options.predict or torch.cuda.is_available()):
        parser.error("no CUDA device was found; --predict needs none")
    # Before Triton is imported, here and in the processes that compile: the interpreter has nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    chosen = [sweep for sweep in SWEEPS if options.only in sweep.name]
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        if options.predict or options.best is not None:
            chosen = [_first(sweep, pool, options.best) for sweep in chosen]
        if options.predict:
            return
        jobs = [(sweep, number, "cuda") for sweep in chosen for number in range(len(sweep.candidates))]
        reasons = iter(list(pool.map(compile_one, jobs)))
    device, profiled = torch.device("cuda"), set()
    for sweep in chosen:
        case = (sweep.operation, str(sweep.shape), sweep.backward, sweep.provider)
        if options.profile and case not in profiled:
            profiled.add(case)
            profile(sweep, device)
        run(sweep, [next(reasons) for _ in sweep.candidates], device, options.seconds)


def _first(sweep: Sweep, pool: ProcessPoolExecutor, count: int | None) -> Sweep:
    """Print the predictions; returns the sweep with the first `count` candidates, all for None."""
    in_use, *times = pool.map(predict_one, [(sweep, number) for number in (None, *range(len(sweep.candidates)))])
    show_predictions(sweep, in_use, times)
    return replace(sweep, candidates=tuple(sweep.candidates[number] for number in ranked(sweep, times)[:count]))


if __name__ == "__main__":
    main()
