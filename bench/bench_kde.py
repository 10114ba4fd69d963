"""Benchmark of kernel density: `pytest bench/bench_kde.py --benchmark-enable`."""

from __future__ import annotations


def test_kde(benchmark, call):
    benchmark(call)
