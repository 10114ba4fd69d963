"""Benchmark of the denoising chain, single and grouped by class: `pytest bench/bench_chain.py --benchmark-enable`."""


def test_chain(benchmark, call):
    benchmark(call)
