"""Benchmark of the sleep term's regression: `pytest bench/bench_sleep.py --benchmark-enable`."""


def test_sleep(benchmark, call):
    benchmark(call)
