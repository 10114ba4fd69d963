"""The command `ddvi-fast place`."""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast.cli.arguments import Parser


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast place`."""
    parser = Parser(prog="ddvi-fast place", description="Place people with few called genotypes on the map of a panel, with regions, into a table.")
    parser.add_argument("panel", metavar="PANEL", help="store or genotype file of the panel, or the folder that --save wrote")
    parser.add_argument("file", metavar="FILE", help="store or genotype file of the people to place")
    parser.add_argument("--out", required=True, metavar="TABLE", help="table to write: a row for each person, columns separated by tabs")
    parser.add_argument("--save", metavar="FOLDER", help="folder to write: the posterior fitted to the panel, for further files")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the fit (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace that table")
    options = parser.parse_args(list(arguments))
    from ddvi_fast.genomes.place_table import place

    for path in place(options.panel, options.file, options.out, save=options.save, seed=options.seed, overwrite=options.overwrite):
        print(path)
