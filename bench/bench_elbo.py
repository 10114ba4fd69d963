"""Benchmark of the bound's reductions: `pytest bench/bench_elbo.py --benchmark-enable`."""


def test_elbo(benchmark, call):
    benchmark(call)
