"""Benchmark of maximum mean discrepancy: `pytest bench/bench_mmd.py --benchmark-enable`."""

from __future__ import annotations


def test_mmd(benchmark, call):
    benchmark(call)
