"""Benchmark of unpacking and principal components of genotypes: `pytest bench/bench_genomes.py --benchmark-enable --bench-set genomes`.

The case of 2,504 x 1,000,000 genotypes is in the set ``million``: `ddvi-fast bench million`. Its store of 625 MB is written to the folder of
temporary files, and takes twice as much while it is made.
"""


def test_genomes(benchmark, call):
    benchmark(call)
