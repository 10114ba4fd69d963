"""Benchmark of forward noising: `pytest bench/bench_noise.py --benchmark-enable`."""


def test_noise(benchmark, call):
    benchmark(call)
