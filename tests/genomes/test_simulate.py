"""Tests of simulated genomes: seed, cache and demography."""

import sys

import numpy as np
import pytest

from ddvi_fast.genomes.convert import write_store
from ddvi_fast.genomes.formats.sources import Source
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.simulate import POPULATIONS, Simulation, _blocks, _samples, demography, simulated_genomes, write_simulation
from ddvi_fast.genomes.store import GenotypeStore

msprime = pytest.importorskip("msprime")
SMALL = Simulation(samples=25, segments=2, length=20_000)


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    return simulated_genomes(SMALL, tmp_path_factory.mktemp("cache"))


def test_the_same_seed_gives_the_same_genomes_and_another_others(genomes, tmp_path):
    same, other = (write_simulation(Simulation(25, 2, 20_000, seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    for name in ("genotypes.bin", "variants.tsv", "samples.tsv"):
        assert (same.path / name).read_bytes() == (genomes.path / name).read_bytes()
    assert (other.path / "genotypes.bin").read_bytes() != (genomes.path / "genotypes.bin").read_bytes()


def test_a_cached_simulation_is_not_made_again(tmp_path, monkeypatch):
    first = simulated_genomes(SMALL, tmp_path)
    monkeypatch.setattr(msprime, "sim_ancestry", None)
    assert simulated_genomes(SMALL, tmp_path).path == first.path
    with pytest.raises(TypeError):
        simulated_genomes(Simulation(samples=24, segments=2, length=20_000), tmp_path)
    assert [path.name for path in (tmp_path / "genomes").iterdir()] == [first.path.name]


def test_genotypes_are_pairs_of_msprimes_haplotypes(tmp_path):
    """All variants of the first segment, against the tree sequence's own individuals."""
    simulation = Simulation(samples=5, segments=1, length=20_000, min_frequency=0.0)
    (tmp_path / "all").mkdir()
    write_store(Source(tmp_path, _samples(simulation, POPULATIONS), _blocks(msprime, simulation, demography(msprime), POPULATIONS)), tmp_path / "all")
    trees = next(iter(msprime.sim_ancestry(
        samples=dict.fromkeys(POPULATIONS, 5), demography=demography(msprime), sequence_length=20_000, recombination_rate=1e-8, random_seed=1,
        num_replicates=22,
    )))  # fmt: skip
    mutated = msprime.sim_mutations(trees, rate=2.36e-8, model="binary", random_seed=1)
    names = [population.metadata["name"] for population in mutated.populations()]
    expected = np.array([mutated.genotype_matrix(samples=individual.nodes).sum(1) for individual in mutated.individuals()])
    store = GenotypeStore(tmp_path / "all")
    assert np.array_equal(store.genotypes(count=mutated.num_sites), expected)
    assert [names[individual.population] for individual in mutated.individuals()] == list(store.samples.labels["population"])


def test_populations_differ_as_their_history_has_it(genomes):
    scores = GenotypePCA(2).fit_transform(genomes)
    numbers, names = genomes.labels("population")
    centre = {name: scores[numbers.numpy() == number].mean(0) for number, name in enumerate(names)}
    # Africa stands apart; the admixed lie among their three sources, at the proportions of the admixture.
    gap = np.linalg.norm(centre["AFR"] - centre["EUR"])
    assert gap > np.linalg.norm(centre["EAS"] - centre["EUR"])
    expected = (centre["AFR"] + 2 * centre["EUR"] + 3 * centre["EAS"]) / 6
    assert np.linalg.norm(centre["ADMIX"] - expected) < 0.15 * gap
    assert genomes.counts[:, 3].sum() == 0 and set(names) == set(POPULATIONS)


def test_people_of_another_demography(tmp_path):
    history = msprime.Demography.island_model([500, 500, 500], migration_rate=1e-3)
    simulation = Simulation(samples=6, segments=1, length=20_000)
    store = write_simulation(simulation, tmp_path / "store", history=history, populations=["pop_0", "pop_2"])
    assert list(store.samples.labels["population"]) == ["pop_0"] * 6 + ["pop_2"] * 6
    numbers, _ = store.labels("population")
    frequencies = [store.genotypes(np.flatnonzero(numbers.numpy() == number)).mean(0) / 2 for number in (0, 1)]
    mean = np.mean(frequencies, axis=0)
    # F_ST of islands with 4 N m d^2 / (d - 1)^2 = 9 is 1 / (1 + 9) for 2 m between each pair; populations of six have sampling variance as well.
    assert 0.03 < np.var(frequencies, axis=0).sum() / (mean * (1 - mean)).sum() < 0.25


def test_bad_requests_are_one_line(one_line, monkeypatch, tmp_path):
    assert "samples" in one_line(lambda: Simulation(samples=0))
    assert "seed" in one_line(lambda: Simulation(seed=-1))
    assert "min_frequency" in one_line(lambda: Simulation(min_frequency=0.5))
    monkeypatch.setitem(sys.modules, "msprime", None)
    assert "ddvi-fast[genomes]" in one_line(lambda: simulated_genomes(SMALL, tmp_path))
