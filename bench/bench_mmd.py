"""Benchmark of maximum mean discrepancy: `pytest bench/bench_mmd.py --benchmark-enable`."""


def test_mmd(benchmark, call):
    benchmark(call)
