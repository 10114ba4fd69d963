"""The command `ddvi-fast data`: genotype files into packed stores, and the contents of a store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddvi_fast.cli.arguments import Parser

if TYPE_CHECKING:
    from ddvi_fast.genomes import GenotypeStore

MULTIALLELIC = ("drop", "split")
PALINDROMES = ("auto", "keep", "drop", "frequency")
# Option, its field of `genomes.Filters` and type, help. Options that are not given keep the defaults of the library.
FILTERS = (
    ("--keep", "keep", str, "file of the people to keep alone: a family and an individual a line, or the individual alone"),
    ("--remove", "remove", str, "file of the people to leave out"),
    ("--extract", "extract", str, "file of the identifiers of the variants to keep alone"),
    ("--exclude", "exclude", str, "file of the identifiers of the variants to leave out"),
    ("--region", "regions", list, "region to keep alone, chromosome:from-to; may be given several times"),
    ("--exclude-region", "exclude_regions", list, "region to leave out"),
    ("--autosomes", "autosomes", None, "keep autosomes only (chromosomes 1 to 22, or see --chr-set)"),
    ("--unique", "unique", None, "keep the first of the variants with the same position and alleles"),
    ("--varying", "varying", None, "leave out constant variants"),
    ("--max-missing", "max_missing", float, "largest fraction of missing calls of a variant"),
    ("--max-sample-missing", "max_sample_missing", float, "largest fraction of missing calls of a sample"),
    ("--hwe", "hardy_weinberg", float, "smallest p-value of the exact test of Hardy-Weinberg proportions"),
    ("--keep-fewhet", "keep_few_heterozygotes", None, "let --hwe keep variants with fewer heterozygotes than expected, as populations cause them"),
    ("--maf", "min_frequency", float, "smallest frequency of the rarer allele"),
    ("--max-r2", "max_correlation", float, "largest squared correlation of two variants in a window"),
    ("--window", "window", int, "number of variants in a window of --max-r2"),
    ("--step", "step", int, "number of variants from one window to the next"),
)
SIMULATION = (
    ("--samples", "samples", int, "number of samples of each population"),
    ("--segments", "segments", int, "number of segments on each of 22 chromosomes"),
    ("--length", "length", int, "length of a segment in base pairs"),
    ("--maf", "min_frequency", float, "smallest frequency of the rarer allele"),
    ("--seed", "seed", int, "seed of the simulation"),
)
_ARGPARSE: dict[type | None, dict[str, Any]] = {
    None: {"action": "store_true"},
    int: {"type": int, "metavar": "N"},
    float: {"type": float, "metavar": "X"},
    str: {"metavar": "FILE"},
    list: {"action": "append", "metavar": "REGION"},
}


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast data`."""
    options = _parser().parse_args(list(arguments))
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ddvi-fast data", description="Import genotype files into packed stores, merge and describe stores, find relatives, simulate genomes."
    )
    commands = parser.add_subparsers(required=True, metavar="import|merge|relatives|info|simulate", parser_class=Parser)
    _add_import(commands.add_parser("import", help="import a PLINK, VCF, BCF or EIGENSOFT file into a store"))
    _add_merge(commands.add_parser("merge", help="merge the people of several stores on the variants that they have in common"))
    _add_relatives(commands.add_parser("relatives", help="list duplicates and relatives among the people of a store"))
    info = commands.add_parser("info", help="describe a store")
    info.add_argument("store", metavar="STORE", help="folder of the store")
    info.set_defaults(run=_info)
    simulate = commands.add_parser("simulate", help="simulate genomes of four populations with msprime")
    _add_output(simulate)
    _add_fields(simulate, SIMULATION)
    simulate.set_defaults(run=_simulate)
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    several = "several files of the same samples, as 'chr{1..22}.vcf.gz', follow each other"
    parser.add_argument("file", nargs="+", metavar="FILE", help=f"a file of PLINK (.bed, .pgen) or EIGENSOFT (.geno), VCF or BCF; {several}")
    _add_output(parser)
    parser.add_argument("--labels", metavar="TABLE", help="table with a header line and a row for each sample")
    parser.add_argument("--leave-out-unlabelled", action="store_true", help="leave out samples without a label instead of stopping")
    parser.add_argument("--multiallelic", choices=MULTIALLELIC, default="drop", help="drop or split sites of a VCF with several alternate alleles")
    parser.add_argument("--pass-only", action="store_true", help="leave out records of a VCF that do not pass their FILTER")
    parser.add_argument("--chr-set", type=int, default=22, metavar="N", help="number of autosomes of the species (default 22)")
    _add_fields(parser, FILTERS)
    parser.set_defaults(run=_import)


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", metavar="STORE", help="folders of the stores; variants are those of the first")
    _add_output(parser)
    parser.add_argument("--palindromes", choices=PALINDROMES, default="auto", help="treatment of variants with the alleles A/T or C/G")
    _add_fields(parser, FILTERS)
    parser.set_defaults(run=_merge)


def _add_relatives(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="folder of the store")
    parser.add_argument("--least", type=float, default=argparse.SUPPRESS, metavar="X", help="smallest kinship (default 0.0884, of the second degree)")
    parser.add_argument("--out", metavar="TABLE", help="write the pairs into a table, columns separated by tabs")
    parser.add_argument("--list", metavar="FILE", help="write a list of people for --remove, without whom no pair is left")
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    parser.set_defaults(run=_relatives)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="STORE", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace that store")


def _add_fields(parser: argparse.ArgumentParser, fields: Sequence[tuple[str, str, type | None, str]]) -> None:
    for name, field, kind, meaning in fields:
        parser.add_argument(name, dest=field, default=argparse.SUPPRESS, help=meaning, **_ARGPARSE[kind])


def _given(options: argparse.Namespace, fields: Sequence[tuple[str, str, type | None, str]]) -> dict[str, Any]:
    return {field: getattr(options, field) for _, field, *_ in fields if hasattr(options, field)}


def _import(options: argparse.Namespace) -> None:
    from ddvi_fast.genomes import Filters, import_genotypes

    store = import_genotypes(
        options.file, options.out, labels=options.labels, leave_out_unlabelled=options.leave_out_unlabelled,
        filters=Filters(**_given(options, FILTERS)), multiallelic=options.multiallelic, passing_only=options.pass_only,
        num_autosomes=options.chr_set, overwrite=options.overwrite,
    )  # fmt: skip
    _describe(store)


def _merge(options: argparse.Namespace) -> None:
    from ddvi_fast.genomes import Filters, GenotypeStore, merge_stores

    stores = [GenotypeStore(path) for path in options.stores]
    filters = Filters(**_given(options, FILTERS))
    _describe(merge_stores(stores, options.out, palindromes=options.palindromes, filters=filters, overwrite=options.overwrite))


def _simulate(options: argparse.Namespace) -> None:
    from ddvi_fast.genomes.simulate import Simulation, write_simulation

    _describe(write_simulation(Simulation(**_given(options, SIMULATION)), Path(options.out), options.overwrite))


def _relatives(options: argparse.Namespace) -> None:
    from ddvi_fast.genomes import GenotypeStore, relatives
    from ddvi_fast.genomes.kinship import DEGREES, write

    store = GenotypeStore(options.store)
    found = relatives(store, **({"least": options.least} if hasattr(options, "least") else {}))
    degrees = found.degrees()
    lines = {"people": f"{len(store):,}"}
    lines |= {name: f"{degrees.count(name):,} pairs" for name in [*DEGREES, "more distant"] if name in degrees}
    lines["to remove, so that no pair is left"] = f"{len(found.to_remove()):,} people"
    for path in write(found, store, options.out, options.list, options.overwrite):
        lines[path.name] = "written"
    _print(lines)


def _info(options: argparse.Namespace) -> None:
    from ddvi_fast.genomes import GenotypeStore

    _describe(GenotypeStore(options.store))


def _describe(store: GenotypeStore) -> None:
    """Print the contents of a store, its source and how much each filter removed."""
    import numpy as np

    from ddvi_fast.data.packed import frequencies
    from ddvi_fast.genomes.store import GENOTYPES

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
    _print(lines)


def _print(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
