"""The 54 commands of the paper's README, one epoch each.

    python -m bench.studies.run_paper_commands data_dir=path/to/data                       # whole data sets
    python -m bench.studies.run_paper_commands --jobs 2 data_dir=... limit=2048

Settings after the options go to every command. Commands that an earlier call finished with the same settings are not repeated. Results are written
into bench/results/paper_commands.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench import records
from ddvi_fast import _markdown
from ddvi_fast.engine.run_folder import environment

COMMANDS = Path(__file__).with_name("paper_commands.txt")
RESULTS = records.RESULTS / "paper_commands.json"
SHOWN = {"seconds": 0, "knn_accuracy": 3, "latent_nll": 2}  # metrics of the table, with their digits


def commands() -> list[list[str]]:
    """Data set, method and prior of each command."""
    lines = COMMANDS.read_text(encoding="utf-8").splitlines()
    return [line.split()[1:] for line in lines if line and not line.startswith("#")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper_commands"), help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="settings of every command")
    options = parser.parse_args()
    further = [*([] if any(item.startswith("epochs=") for item in options.overrides) else ["epochs=1"]), *options.overrides]
    runs: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        numbers = {pool.submit(run, names, further, options.runs): number for number, names in enumerate(commands())}
        for future in as_completed(numbers):
            runs[numbers[future]] = result = future.result()
            outcome = "ok    " if result["finished"] else "FAILED"
            print(f"{len(runs):2d}/{len(numbers)} {outcome} {result['seconds']:6.1f} s  {result['command']}", flush=True)
            if not result["finished"]:
                print(result["message"], flush=True)
    stated = [item for item in further if not item.startswith("data_dir=")]
    command = f"python -m bench.studies.run_paper_commands {' '.join(stated)}"
    records.write(RESULTS, {"kind": "bench.studies.run_paper_commands", **environment(), "command": command, "runs": [runs[i] for i in sorted(runs)]})
    return 0 if all(result["finished"] for result in runs.values()) else 1


def run(names: list[str], further: list[str], folder: Path) -> dict[str, Any]:
    """Run one command in its own process; returns whether it finished, its seconds and its metrics."""
    digest = hashlib.sha256(" ".join(further).encode()).hexdigest()[:8]
    run_dir = folder.resolve() / f"{'-'.join(names)}-{digest}"
    done, started, message = run_dir / "evaluation.json", time.perf_counter(), ""
    if not done.is_file():
        settings = [*further, f"run_dir={run_dir}", "overwrite=true", "progress=off", "tensorboard=false"]
        child = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        ended = subprocess.run([str(records.RESULTS.parents[1] / "run.sh"), *names, *settings], env=child, capture_output=True, text=True)
        message = "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no message"])[-1]
    finished = done.is_file() and not message
    figures = json.loads(done.read_text(encoding="utf-8")) if finished else {}
    command = f"./run.sh {' '.join(names)}"
    return {"command": command, "finished": finished, "seconds": round(time.perf_counter() - started, 1), "message": message, "figures": figures}


def markdown(record: dict[str, Any]) -> str:
    """A row for each command."""
    rows = []
    for run in record["runs"]:
        numbers = [f"{run['figures'][name]:.{digits}f}" if name in run["figures"] else "-" for name, digits in SHOWN.items()]
        rows.append([f"`{run['command']}`", "yes" if run["finished"] else run["message"], *numbers])
    summary = f"{sum(run['finished'] for run in record['runs'])} of {len(rows)} finished. {records.source(record)}"
    headings = ("command", "finished", "seconds of training", "KNN accuracy", "latent NLL")
    return "\n".join(["# The commands of the paper's README", "", summary, "", _markdown.table(headings, rows), ""])


if __name__ == "__main__":
    sys.exit(main())
