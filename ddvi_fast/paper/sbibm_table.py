"""The text of the table `ddvi-fast reproduce sbibm`."""

from __future__ import annotations

import statistics
from typing import Any

from ddvi_fast import _markdown
from ddvi_fast.paper.sbibm_tasks import TASKS

# Mean C2ST that Lueckmann et al. (2021) have published, by task and number of simulations; others were not at hand.
PUBLISHED = {
    ("two_moons", 10_000): {"NPE": 0.606, "SNPE": 0.554},
    ("slcp", 10_000): {"NPE": 0.901, "SNLE": 0.713},
}
HEADINGS = (
    "task",
    "simulations",
    "C2ST",
    "lowest",
    "highest",
    "observations",
    "published NPE",
    "published sequential",
    "seed",
    "simulated",
    "CPU seconds",
)


def markdown(record: dict[str, Any]) -> str:
    """The table of a record."""
    order = list(TASKS)
    cells = sorted(record["cells"], key=lambda cell: (order.index(cell["task"]), cell["budget"], cell["seed"]))
    versions = sorted({(str(cell["commit"])[:10], cell["processor"], cell["torch"]) for cell in cells})
    lines = [
        "# sbibm",
        "",
        f"`{record['command']}`.",
        "One posterior for all observations of a task, fitted with the defaults of `fit_posterior(num_simulations=...)`, which were chosen on other"
        " problems. C2ST: mean of the accuracies of sbibm's classifier between 10,000 draws and the 10,000 reference draws of each observation; 0.5"
        " is the best. Simulated: what a counter in the simulator has found. Published: means over ten observations (Lueckmann et al. 2021).",
        *(f"Fits: commit {commit}, {processor}, torch {torch}, one thread." for commit, processor, torch in versions),
        "",
        _markdown.table(HEADINGS, [_row(cell) for cell in cells]),
        "",
    ]
    return "\n".join(lines)


def _row(cell: dict[str, Any]) -> list[str]:
    values = list(cell["c2st"].values())
    published = PUBLISHED.get((cell["task"], cell["budget"]), {})
    sequential = ", ".join(f"{name} {value:.3f}" for name, value in published.items() if name != "NPE")
    single = f"{published['NPE']:.3f}" if "NPE" in published else ""
    return [
        cell["task"], f"{cell['budget']:,}", f"{statistics.fmean(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}", str(len(values)), single,
        sequential, str(cell["seed"]), f"{cell['simulated']:,}", f"{cell['seconds']:.0f}",
    ]  # fmt: skip
