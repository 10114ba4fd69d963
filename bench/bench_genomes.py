"""Times unpacking and principal components of genotypes: `pytest bench/bench_genomes.py --benchmark-enable --bench-set genomes`.

The large case, 2,504 x 1,000,000, is in the set ``million``: `ddvi-fast bench million`. The 625 MB of its store go to the folder of
temporary files, twice while it is made.
"""

from __future__ import annotations


def test_genomes(benchmark, call):
    benchmark(call)
