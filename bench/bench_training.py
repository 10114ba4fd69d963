"""Benchmark of the whole DDVI training step: `pytest bench/bench_training.py --benchmark-enable`."""

from __future__ import annotations


def test_training(benchmark, call):
    benchmark(call)
