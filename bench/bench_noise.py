"""Benchmark of forward noising: `pytest bench/bench_noise.py --benchmark-enable`."""

from __future__ import annotations


def test_noise(benchmark, call):
    benchmark(call)
