"""Benchmark of the bound's reductions: `pytest bench/bench_elbo.py --benchmark-enable`."""

from __future__ import annotations


def test_elbo(benchmark, call):
    benchmark(call)
