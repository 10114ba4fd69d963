"""Benchmark of kernel density: `pytest bench/bench_kde.py --benchmark-enable`."""


def test_kde(benchmark, call):
    benchmark(call)
