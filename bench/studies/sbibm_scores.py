"""Score estimation and flow matching of sbi on tasks of sbibm, from the simulations that our posteriors of the table of sbibm are fitted to.

    python -m bench.studies.sbibm_scores run two_moons npse --observations 1 2    # what is not there: minutes of one core
    python -m bench.studies.sbibm_scores table                                    # adds it to bench/results/sbibm_scores.json and .md

It needs the packages sbi and sbibm (`pip install --no-deps sbibm==1.1.0`). A cell is a file in `--cells`. C2ST is that of
`ddvi-fast reproduce sbibm`, and our figures are those of bench/results/sbibm at the same observations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import records
from bench.studies.own_models_npse import Npse
from ddvi_fast import _markdown
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.inference import Model, Support
from ddvi_fast.inference.model import Simulator, seeded
from ddvi_fast.paper.sbibm import DRAWS, c2st, counted
from ddvi_fast.paper.sbibm_tasks import OBSERVATIONS, TASKS, Task
from ddvi_fast.rng import Draws

METHODS = {"npse": "NPSE (sbi)", "fmpe": "FMPE (sbi)"}
SIMULATIONS = 10_000
HEADINGS = ("task", "method", "simulations", "C2ST", "lowest", "highest", "observations", "ours there", "CPU seconds")


def simulations(task: Task, number: int, seed: int, calls: list[int]) -> Simulator:
    """The simulations that `fit_posterior` draws for that number and seed; numbers of simulations are added to `calls`."""
    with seeded(Draws(0), torch.device("cpu")):
        support = Support(task.support, task.prior(1).shape[1])
    return Simulator(Model(simulate=counted(task, calls)), support, budget=number, seed=seed)


def fit(simulator: Simulator, method: str, seed: int) -> Npse:
    """A posterior of sbi with its default settings, in unconstrained parameters."""
    from sbi import inference

    u, x = simulator.all(simulator.budget, Draws(seed))
    torch.manual_seed(seed)
    # sbi only uses the bounds of the prior, and unconstrained parameters have none.
    prior = torch.distributions.MultivariateNormal(u.mean(0), torch.diag(4 * u.var(0)))
    trained = getattr(inference, method.upper())(prior, show_progress_bars=False)
    network = trained.append_simulations(u, x).train()
    return Npse(simulator, trained.build_posterior(network), seed)


def judge(cell: dict[str, Any], observations: list[int]) -> dict[str, Any]:
    """Fit the posterior of a cell and add the C2ST at observations."""
    torch.set_num_threads(1)
    task, calls, start = TASKS[cell["task"]](), [], time.process_time()
    posterior = fit(simulations(task, cell["budget"], cell["seed"], calls), cell["method"], cell["seed"])
    seconds, found = time.process_time() - start, {}
    for number in observations:
        found[str(number)] = c2st(task.reference(number), posterior.sample(DRAWS, task.observed(number)))
    return {**cell, "simulated": sum(calls), "seconds": seconds, "c2st": found}


def markdown(record: dict[str, Any]) -> str:
    """The table of all cells, with our C2ST at the same observations where they are known."""
    ours = {(one["task"], one["budget"]): one["c2st"] for one in records.read(records.RESULTS / "sbibm" / "table.json")["cells"] if one["seed"] == 0}
    order = list(TASKS)
    cells = sorted(record["cells"], key=lambda cell: (order.index(cell["task"]), list(METHODS).index(cell["method"]), cell["seed"]))
    rows = [_row(cell, ours.get((cell["task"], cell["budget"]), {})) for cell in cells]
    made = sorted({((cell["commit"] or "none")[:10], cell["processor"], cell["sbi"]) for cell in cells})
    about = [
        "Posteriors of sbi with its default settings, from the simulations that ours of the table of sbibm are fitted to. C2ST with sbibm's"
        f" classifier, {DRAWS:,} draws; 0.5 is the best. Ours there: the mean of the table of sbibm at the same observations.",
        *(f"Commit {commit}, {processor}, sbi {version}, one thread." for commit, processor, version in made),
    ]
    return "\n".join(["# Score estimation and flow matching on sbibm", "", *about, "", _markdown.table(HEADINGS, rows), ""])


def _row(cell: dict[str, Any], ours: dict[str, float]) -> list[str]:
    values = list(cell["c2st"].values())
    beside = [ours[number] for number in cell["c2st"] if number in ours]
    return [
        cell["task"], METHODS[cell["method"]], f"{cell['simulated']:,}",
        *(f"{of(values):.3f}" for of in (statistics.fmean, min, max)), str(len(values)),
        f"{statistics.fmean(beside):.3f}" if len(beside) == len(values) else "", f"{cell['seconds']:.0f}",
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("runs/sbibm_scores"), help="folder of the cells")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compute a cell, unless it is there")
    run.add_argument("task", choices=TASKS)
    run.add_argument("method", choices=METHODS)
    run.add_argument("--observations", nargs="+", type=int, default=list(OBSERVATIONS), choices=OBSERVATIONS)
    run.add_argument("--budget", type=int, default=SIMULATIONS, help="number of simulations")
    run.add_argument("--seed", type=int, default=0)
    commands.add_parser("table", help="write the results and the table")
    options = parser.parse_args(arguments)
    if options.command == "table":
        records.add_cells("sbibm_scores", options.cells, ("task", "method", "budget", "seed"))
        return 0
    path = options.cells / f"{options.task}-{options.method}-{options.budget}-{options.seed}.json"
    if not path.exists():
        import sbi

        made = environment()
        cell = judge({name: getattr(options, name) for name in ("task", "method", "budget", "seed")}, options.observations)
        head = {"commit": made["commit"], "processor": made["machine"]["processor"], "sbi": sbi.__version__}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**cell, **head}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
