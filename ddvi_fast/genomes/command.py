"""`ddvi-fast data`: genotype files into stores, and what a store holds.

ddvi-fast data import FILE --out STORE [--labels TABLE] [filters]
ddvi-fast data info STORE
ddvi-fast data simulate --out STORE [--samples N] [--seed S]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddvi_fast._arguments import Parser
from ddvi_fast.data.packed import frequencies
from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import MULTIALLELIC
from ddvi_fast.genomes.simulate import Simulation, write_simulation
from ddvi_fast.genomes.store import GENOTYPES, GenotypeStore


def main(arguments: Sequence[str]) -> None:
    """The command `ddvi-fast data`.

    Raises:
        InputError: arguments that make no sense, and whatever importing or opening raises.
    """
    options = _parser().parse_args(list(arguments))
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ddvi-fast data", description="Genotype files into packed stores.")
    commands = parser.add_subparsers(required=True, metavar="import|info|simulate", parser_class=Parser)
    _add_import(commands.add_parser("import", help="a PLINK 1, VCF, BCF or EIGENSTRAT file into a store"))
    info = commands.add_parser("info", help="what a store holds")
    info.add_argument("store")
    info.set_defaults(run=_info)
    _add_simulate(commands.add_parser("simulate", help="simulated genomes of four populations, by msprime"))
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="any of the files of PLINK 1 (.bed) or EIGENSTRAT (.geno), or a VCF or BCF file")
    _add_out(parser)
    parser.add_argument("--labels", help="a table with a row for each sample and a header line")
    parser.add_argument("--leave-out-unlabelled", action="store_true", help="leave out samples without a label instead of stopping")
    parser.add_argument("--multiallelic", choices=MULTIALLELIC, default="drop", help="a VCF's sites with several alternate alleles")
    parser.add_argument("--pass-only", action="store_true", help="leave out a VCF's records that do not pass their FILTER")
    parser.add_argument("--autosomes", action="store_true", help="keep chromosomes 1 to 22 alone")
    parser.add_argument("--unique", action="store_true", help="keep the first of variants with one position and one pair of alleles")
    parser.add_argument("--varying", action="store_true", help="leave out constant variants")
    for name, field, meaning in _NUMBERS:
        parser.add_argument(name, dest=field, type=float, metavar="X", help=meaning)
    parser.add_argument("--window", type=int, default=Filters.window, help="variants in a window of --max-r2")
    parser.add_argument("--step", type=int, default=Filters.step, help="variants from one window to the next")
    parser.set_defaults(run=_import)


_NUMBERS = (
    ("--max-missing", "max_missing", "largest share of missing calls of a variant"),
    ("--max-sample-missing", "max_sample_missing", "largest share of missing calls of a sample"),
    ("--maf", "min_frequency", "smallest frequency of the rarer allele"),
    ("--max-r2", "max_correlation", "largest squared correlation of two variants in a window"),
)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    _add_out(parser)
    parser.add_argument("--samples", type=int, default=Simulation.samples, help="of each population")
    parser.add_argument("--segments", type=int, default=Simulation.segments, help="on each of 22 chromosomes")
    parser.add_argument("--length", type=int, default=Simulation.length, help="base pairs of a segment")
    parser.add_argument("--maf", type=float, default=Simulation.min_frequency, help="smallest frequency of the rarer allele")
    parser.add_argument("--seed", type=int, default=Simulation.seed)
    parser.set_defaults(run=_simulate)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="STORE", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace that store")


def _import(options: argparse.Namespace) -> None:
    filters = Filters(**{name: getattr(options, name) for name in Filters.__dataclass_fields__})
    store = import_genotypes(
        options.file, options.out, labels=options.labels, leave_out_unlabelled=options.leave_out_unlabelled, filters=filters,
        multiallelic=options.multiallelic, passing_only=options.pass_only, overwrite=options.overwrite,
    )  # fmt: skip
    describe(store)


def _simulate(options: argparse.Namespace) -> None:
    simulation = Simulation(options.samples, options.segments, options.length, options.maf, options.seed)
    describe(write_simulation(simulation, Path(options.out), options.overwrite))


def _info(options: argparse.Namespace) -> None:
    describe(GenotypeStore(options.store))


def describe(store: GenotypeStore) -> None:
    """Print what a store holds, where it came from and what each filter removed."""
    imported = store.imported
    lines = {"store": str(store.path), "from": imported["file"]}
    lines["read"] = f"{imported['read']['samples']:,} samples, {imported['read']['variants']:,} variants"
    lines |= {reason: f"{count:,}" for reason, count in imported["reader"].items()}
    for step in imported["removed"]:
        lines[step["reason"]] = f"{step['samples']:,} samples" if step["samples"] else f"{step['variants']:,} variants"
    lines["kept"] = f"{store.num_samples:,} samples, {store.num_variants:,} variants"
    lines["missing calls"] = f"{store.counts[:, 3].sum() / (store.num_samples * store.num_variants):.3%}"
    frequency = frequencies(store.counts)
    lines["mean minor allele frequency"] = f"{np.nanmean(np.minimum(frequency, 1 - frequency)):.4f}" if not np.isnan(frequency).all() else "no calls"
    lines["chromosomes"] = ", ".join(dict.fromkeys(store.variants.chromosome))
    for name, column in store.samples.labels.items():
        values, counts = np.unique(column.astype(str), return_counts=True)
        shown = ", ".join(f"{value} {count}" for value, count in zip(values, counts, strict=True)) if len(values) <= 30 else "many"
        lines[f"label {name}"] = f"{len(values)} values: {shown}"
    lines["size"] = f"{(store.path / GENOTYPES).stat().st_size:,} bytes of genotypes"
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
