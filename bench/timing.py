"""How a call is timed: providers take turns, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

SHORTEST_MS = 1.0  # calls shorter than this are timed several at a time
LONGEST_SETTLING_MS = 500.0  # calls longer than this begin their turn without one that is not counted
MOST_ROUNDS = 400


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median, 20th and 80th percentile over `rounds` measurements of `calls` calls each."""

    median: float
    p20: float
    p80: float
    rounds: int
    calls: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def time_together(
    providers: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float = 2.0, least_rounds: int = 3, warm_up: int = 2
) -> dict[str, Timing]:
    """Time each provider for about `seconds`, in turns: one measurement of each, then the next round.

    What the one before left in caches is not this one's fault, and work is done many times in a row: a turn begins with a call that
    is not counted, unless calls are so long that it would not show.

    Args:
        providers: what to call; results are dropped.
        device: where the work runs. On a GPU events are recorded around the calls, else the host's clock is read.
        seconds: for each provider. A call that takes longer is still measured `least_rounds` times.
        least_rounds: measurements that every provider gets.
        warm_up: calls before the first measurement; the last of them decides how many calls a measurement holds.
    """
    calls, estimates = {}, {}
    for name, provider in providers.items():
        estimates[name] = [measure(provider, device, 1) for _ in range(warm_up)][-1]
        calls[name] = max(1, math.ceil(SHORTEST_MS / max(estimates[name], 1e-4)))
    samples: dict[str, list[float]] = {name: [] for name in providers}
    wanted = {name: min(MOST_ROUNDS, max(least_rounds, int(seconds * 1000 / max(estimates[name] * calls[name], 1e-4)))) for name in providers}
    for number in range(max(wanted.values(), default=0)):
        for name, provider in providers.items():
            # The slow ones skip rounds evenly, so that their few measurements are spread over the whole run.
            if (number + 1) * wanted[name] // max(wanted.values()) > len(samples[name]):
                if estimates[name] < LONGEST_SETTLING_MS:
                    provider()
                samples[name].append(measure(provider, device, calls[name]))
    return {name: summarise(values, calls[name]) for name, values in samples.items()}


def measure(provider: Callable[[], object], device: torch.device, calls: int) -> float:
    """Milliseconds a call, over `calls` calls in a row."""
    if device.type == "cuda":
        return _measure_events(provider, device, calls)
    start = time.perf_counter()
    for _ in range(calls):
        provider()
    return (time.perf_counter() - start) * 1000 / calls


def _measure_events(provider: Callable[[], object], device: torch.device, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        provider()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / calls


def summarise(values: list[float], calls: int) -> Timing:
    """Median and percentiles of measurements."""
    ordered = sorted(values)
    return Timing(_quantile(ordered, 0.5), _quantile(ordered, 0.2), _quantile(ordered, 0.8), len(ordered), calls)


def _quantile(ordered: list[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
