"""Genotypes: import of PLINK, VCF and EIGENSTRAT files into a packed store, filters, principal components, simulated genomes.

Importing this package registers the data sets ``1kg`` and ``genomes``.
"""

from ddvi_fast.genomes.admixture import Admixture
from ddvi_fast.genomes.align import MatchReport, align
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.dataset import load_genotypes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.kinship import Relatives, relatives
from ddvi_fast.genomes.merge import merge_stores
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.place import PlacePosterior
from ddvi_fast.genomes.places import Places
from ddvi_fast.genomes.simulate import Simulation, simulated_genomes
from ddvi_fast.genomes.store import GenotypeStore

__all__ = [
    "Admixture", "Filters", "GenotypePCA", "GenotypeStore", "MatchReport", "PlacePosterior", "Places", "Relatives", "Simulation", "align",
    "import_genotypes", "load_genotypes", "merge_stores", "relatives", "simulated_genomes", "store_from_codes",
]  # fmt: skip
