"""Benchmark of the whole DDVI training step: `pytest bench/bench_training.py --benchmark-enable`."""


def test_training(benchmark, call):
    benchmark(call)
