"""The command `ddvi-fast bench`, which runs the benchmarks of a source tree."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ddvi_fast import _checks
from ddvi_fast.cli.arguments import Parser

SETS = ("quick", "targets", "full", "device", "genomes", "million")
PROVIDERS = {
    "eager": "PyTorch, step by step",
    "compiled": "the same under torch.compile",
    "ours": "ddvi_fast, float32",
    "ours_bf16": "ddvi_fast, hidden layers in bf16",
}


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast bench`."""
    parser = Parser(prog="ddvi-fast bench", description="Run a set of benchmarks, print the table and write the record.")
    parser.add_argument("set", nargs="?", metavar="SET", default="quick", choices=SETS, help=f"{', '.join(SETS)} (default quick: a few minutes)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--output", metavar="NAME", help="name of the results file (default SET-DEVICE)")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    meaning = "; ".join(f"{name}: {what}" for name, what in PROVIDERS.items())
    parser.add_argument("--providers", nargs="+", metavar="NAME", choices=PROVIDERS, default=list(PROVIDERS), help=f"{meaning} (default all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="X", help="seconds of measuring for each provider of a case (default 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    options = parser.parse_args(list(arguments))
    root = Path(__file__).resolve().parents[2]
    found = (root / "bench" / "run.py").is_file()
    _checks.require(found, "bench", "a source tree, which has the folder bench/", f"an installed package in {root}", "clone the repository")
    sys.path.insert(0, str(root))  # the benchmarks are no part of the package
    from bench.run import main as run_benchmarks

    run_benchmarks(options, " ".join(["ddvi-fast", "bench", *arguments]))
