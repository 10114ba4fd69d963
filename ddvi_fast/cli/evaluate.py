"""The command `ddvi-fast evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser, dashed


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast evaluate`."""
    parser = Parser(prog="ddvi-fast evaluate", description="Evaluate the final weights of a run again, with its own settings.")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")
    options = parser.parse_args(list(dashed(arguments, ["run_dir", "overwrite"])))
    register()
    from ddvi_fast.cli.tables import print_result
    from ddvi_fast.plots.run import draw_run
    from ddvi_fast.training.run import evaluate_run

    print_result(evaluate_run(options.run, options.overwrite, draw_run))
