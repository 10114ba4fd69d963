"""Simulated genomes by msprime: three continental populations out of Africa and one that is admixed of them.

The demography is that of Browning et al. (2018, PLoS Genetics 14: e1007385), which adds a population admixed 12 generations ago to the
out-of-Africa model that Gravel et al. (2011, PNAS 108: 11983) fitted to the 1000 Genomes Project. Times are in generations before the
present, population sizes in diploid individuals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.cache import cached_store
from ddvi_fast.genomes.convert import new_folder, write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import Block, Source
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.genomes.tables import SampleTable, VariantTable

POPULATIONS = ("AFR", "EUR", "EAS", "ADMIX")
CHROMOSOMES = 22

_SIZES = {"AFR": 14_474, "EUR": 34_039, "EAS": 45_852, "ADMIX": 54_664}  # today
_GROWTH = {"EUR": 0.0038, "EAS": 0.0048, "ADMIX": 0.05}  # per generation
_OUT_OF_AFRICA, _AFRICA, _ANCESTRAL = 1861, 14_474, 7310
_ADMIXTURE, _EUROPE_ASIA, _LEAVING, _ANCESTORS = 12, 920, 2040, 5920
_SHARES = {"AFR": 1 / 6, "EUR": 1 / 3, "EAS": 1 / 2}
_MIGRATION = {("AFR", "EUR"): 2.5e-5, ("AFR", "EAS"): 0.78e-5, ("EUR", "EAS"): 3.11e-5}
_MIGRATION_OUT = 15e-5
_MUTATION, _RECOMBINATION = 2.36e-8, 1e-8  # per base and generation


@dataclass(frozen=True)
class Simulation:
    """Options of a simulation.

    Args:
        samples: Number of diploid individuals of each population (int, default 100).
        segments: Number of unlinked segments on each of 22 chromosomes (int, default 4).
        length: Length of a segment in base pairs (int, default 50,000); variants within a segment are linked.
        min_frequency: Smallest frequency of the rarer allele of a variant (float, default 0.02).
        seed: Seed of the simulation (int, default 0); the result also depends on the version of msprime.

    Raises:
        InputError: A value is out of range.
    """

    samples: int = 100
    segments: int = 4
    length: int = 50_000
    min_frequency: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "segments", "length"):
            object.__setattr__(self, name, _checks.integer(getattr(self, name), name, 1))
        object.__setattr__(self, "min_frequency", _checks.number(self.min_frequency, "min_frequency", at_least=0, below=0.5))
        object.__setattr__(self, "seed", _checks.integer(self.seed, "seed", 0, 1 << 31))


def simulated_genomes(simulation: Simulation = Simulation(), cache_dir: str | Path | None = None) -> GenotypeStore:
    """Store of a simulation, which msprime makes the first time (in seconds) and which is cached.

    Its samples have the label ``population``, one of `POPULATIONS`.

    Args:
        simulation: Options of the simulation; by default 400 individuals with some 13,000 variants.
        cache_dir: Folder of the cached stores (default: that of the user, see `_files.cache_folder`).

    Raises:
        InputError: msprime is not installed.
    """
    msprime = _checks.library("msprime", "genomes")
    key = {**asdict(simulation), "msprime": msprime.__version__}
    return cached_store("simulated", key, lambda folder: _fill(msprime, simulation, folder), cache_dir)


def write_simulation(
    simulation: Simulation, out: str | Path, overwrite: bool = False, *, history: Any = None, populations: Sequence[str] = POPULATIONS
) -> GenotypeStore:
    """Simulate genomes and write them into the store `out`.

    Args:
        simulation: Options of the simulation.
        out: Folder of the store.
        overwrite: Whether to replace a store (bool, default False).
        history: Another demography, an object of msprime (default `demography`).
        populations: Names of its populations from whom people are taken today.

    Raises:
        InputError: msprime is not installed, or `out` exists.
    """
    msprime = _checks.library("msprime", "genomes")
    with new_folder(Path(out).expanduser(), overwrite) as folder:
        _fill(msprime, simulation, folder, history, populations)
    return GenotypeStore(out)


def _fill(msprime: Any, simulation: Simulation, folder: Path, history: Any = None, populations: Sequence[str] = POPULATIONS) -> None:
    filters = Filters(min_frequency=simulation.min_frequency, varying=True)
    blocks = _blocks(msprime, simulation, demography(msprime) if history is None else history, populations)
    source = Source(Path("msprime"), _samples(simulation, populations), blocks)
    write_store(source, folder, filters=filters, further={"simulation": asdict(simulation)})


def demography(msprime: Any) -> Any:
    """The demography as an object of msprime."""
    history = msprime.Demography()
    for name, size in _SIZES.items():
        history.add_population(name=name, initial_size=size, growth_rate=_GROWTH.get(name, 0.0))
    for name, size in (("OOA", _OUT_OF_AFRICA), ("AMH", _AFRICA), ("ANC", _ANCESTRAL)):
        history.add_population(name=name, initial_size=size)
    for pair, rate in _MIGRATION.items():
        history.set_symmetric_migration_rate(pair, rate)
    history.add_admixture(time=_ADMIXTURE, derived="ADMIX", ancestral=list(_SHARES), proportions=list(_SHARES.values()))
    history.add_population_split(time=_EUROPE_ASIA, derived=["EUR", "EAS"], ancestral="OOA")
    history.add_symmetric_migration_rate_change(time=_EUROPE_ASIA, populations=["AFR", "OOA"], rate=_MIGRATION_OUT)
    history.add_population_split(time=_LEAVING, derived=["OOA", "AFR"], ancestral="AMH")
    history.add_population_split(time=_ANCESTORS, derived=["AMH"], ancestral="ANC")
    return history


def _samples(simulation: Simulation, populations: Sequence[str]) -> SampleTable:
    populations = np.repeat(np.array(populations, object), simulation.samples)
    names = [f"{name}{number % simulation.samples + 1:05d}" for number, name in enumerate(populations)]
    return SampleTable(np.array(names, object), {"population": populations})


def _blocks(msprime: Any, simulation: Simulation, history: Any, populations: Sequence[str]) -> Iterator[Block]:
    replicates = msprime.sim_ancestry(
        samples={name: simulation.samples for name in populations},
        demography=history,
        sequence_length=simulation.length,
        recombination_rate=_RECOMBINATION,
        random_seed=simulation.seed + 1,
        num_replicates=CHROMOSOMES * simulation.segments,
    )
    for number, trees in enumerate(replicates):
        chromosome, segment = divmod(number, simulation.segments)
        mutated = msprime.sim_mutations(trees, rate=_MUTATION, model="binary", random_seed=(simulation.seed * 7919 + number) % ((1 << 32) - 2) + 1)
        haplotypes = mutated.genotype_matrix()
        if len(haplotypes):
            first = segment * simulation.length + 1
            rows = [(str(chromosome + 1), first + int(position), ".", "C", "A") for position in mutated.tables.sites.position]
            # The model has two states: a second mutation at a site restores the ancestral one, and counts remain from 0 to 2.
            yield Block(VariantTable.from_rows(rows), (haplotypes[:, 0::2] + haplotypes[:, 1::2]).astype(np.uint8))
