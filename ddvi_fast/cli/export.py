"""The command `ddvi-fast export`."""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser, dashed


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast export`."""
    parser = Parser(prog="ddvi-fast export", description="Export the posterior of a run (encoder and sampler) as a program that needs only torch.")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--output", metavar="FILE", help="file to write (default RUN/posterior.pt2)")
    parser.add_argument("--num-samples", type=int, default=1, metavar="K", help="posterior samples of each row (default 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    options = parser.parse_args(list(dashed(arguments, ["run_dir", "output", "num_samples", "overwrite"])))
    register()
    from ddvi_fast.training.exporting import export_run

    print(export_run(options.run, options.output, num_samples=options.num_samples, overwrite=options.overwrite))
