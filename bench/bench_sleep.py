"""Benchmark of the sleep term's regression: `pytest bench/bench_sleep.py --benchmark-enable`."""

from __future__ import annotations


def test_sleep(benchmark, call):
    benchmark(call)
