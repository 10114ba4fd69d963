"""Timing of calls: providers take turns, so that a busy moment of the machine affects all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

SHORTEST_MS = 1.0  # calls shorter than this are timed several at a time
LONGEST_SETTLING_MS = 500.0  # longer calls begin their turn without an untimed call
MOST_ROUNDS = 400


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median, 20th and 80th percentile over `rounds` measurements of `calls` calls each."""

    median: float
    p20: float
    p80: float
    rounds: int
    calls: int


def time_together(
    providers: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float = 2.0, least_rounds: int = 3, warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:  # fmt: skip
    """Time each provider for about `seconds`, in turns: one measurement of each, then the next round.

    A turn begins with an untimed call, because the provider before has filled the caches with its own data; turns of long calls do not.

    Args:
        providers: Functions to call; their results are dropped.
        device: Device of the work. On a GPU the time between events is taken, otherwise the host's clock.
        seconds: Seconds of measurements for each provider (float, default 2). A longer call is still measured `least_rounds` times.
        least_rounds: Smallest number of measurements of each provider (int, default 3).
        warm_up: Calls before the first measurement (int, default 2); the last one determines the number of calls in a measurement.
        clock: Clock in seconds of work on the CPU. Default: the wall clock; `time.process_time` leaves out the time that other programs take.
    """
    calls, estimates = {}, {}
    for name, provider in providers.items():
        estimates[name] = [measure(provider, device, 1, clock) for _ in range(warm_up)][-1]
        calls[name] = max(1, math.ceil(SHORTEST_MS / max(estimates[name], 1e-4)))
    samples: dict[str, list[float]] = {name: [] for name in providers}
    wanted = {name: min(MOST_ROUNDS, max(least_rounds, int(seconds * 1000 / max(estimates[name] * calls[name], 1e-4)))) for name in providers}
    for number in range(max(wanted.values(), default=0)):
        for name, provider in providers.items():
            # Slow providers skip rounds evenly, so that their few measurements are spread over the whole run.
            if (number + 1) * wanted[name] // max(wanted.values()) > len(samples[name]):
                if estimates[name] < LONGEST_SETTLING_MS:
                    provider()
                samples[name].append(measure(provider, device, calls[name], clock))
    return {name: summarize(values, calls[name]) for name, values in samples.items()}


def measure(provider: Callable[[], object], device: torch.device, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds per call over `calls` calls in a row; `clock` as in `time_together`."""
    if device.type == "cuda":
        return _measure_events(provider, device, calls)
    start = clock()
    for _ in range(calls):
        provider()
    return (clock() - start) * 1000 / calls


def _measure_events(provider: Callable[[], object], device: torch.device, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        provider()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / calls


def summarize(values: list[float], calls: int) -> Timing:
    """Median and percentiles of measurements."""
    low, median, high = np.percentile(values, (20, 50, 80)).tolist()
    return Timing(median, low, high, len(values), calls)
