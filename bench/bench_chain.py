"""Benchmark of the denoising chain, single and grouped by class: `pytest bench/bench_chain.py --benchmark-enable`."""

from __future__ import annotations


def test_chain(benchmark, call):
    benchmark(call)
