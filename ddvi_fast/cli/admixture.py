"""The command `ddvi-fast admixture`."""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast.cli.arguments import Parser


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast admixture`."""
    parser = Parser(prog="ddvi-fast admixture", description="Estimate the proportions of people's ancestry from several sources, with intervals.")
    parser.add_argument("file", metavar="FILE", help="store, or genotype file of any format; pruned of linkage, see ddvi-fast data import --max-r2")
    parser.add_argument("--sources", type=int, nargs="+", required=True, metavar="K", help="number of sources; of several, held-out genotypes choose")
    parser.add_argument("--supervised", metavar="TABLE", help="table of people of one source each, whose other rows are empty or missing")
    parser.add_argument("--label", metavar="COLUMN", help="column of that table, if it has several")
    parser.add_argument("--groups", metavar="TABLE", help="table whose first column of labels names groups of people in the figure")
    parser.add_argument("--concentration", type=float, default=1.0, metavar="X", help="concentration of the Dirichlet prior (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed (default 0)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write: tables of proportions, .Q, .P and a figure")
    options = parser.parse_args(list(arguments))
    from ddvi_fast.genomes.admixture_run import admixture

    for path in admixture(
        options.file, options.sources, options.out, supervised=options.supervised, label=options.label, groups=options.groups,
        concentration=options.concentration, seed=options.seed,
    ):  # fmt: skip
        print(path)
