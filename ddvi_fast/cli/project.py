"""The command `ddvi-fast project`."""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser, dashed


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast project`."""
    parser = Parser(prog="ddvi-fast project", description="Project people of another genotype file with a finished run, into a table.")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("file", metavar="FILE", help="store, or genotype file of any format")
    parser.add_argument("--out", required=True, metavar="TABLE", help="table to write: a row for each person, columns separated by tabs")
    parser.add_argument("--labels", metavar="TABLE", help="table of labels, whose columns are written, too")
    parser.add_argument("--multiallelic", default="split", metavar="HOW", help="split (default) or drop sites with several alternate alleles")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="device of the networks (default cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace that table")
    options = parser.parse_args(list(dashed(arguments, ["run_dir", "out", "labels", "multiallelic", "device", "overwrite"])))
    register()
    from ddvi_fast.genomes.people import project

    print(project(
        options.run, options.file, options.out, labels=options.labels, multiallelic=options.multiallelic, device=options.device,
        overwrite=options.overwrite,
    ))  # fmt: skip
