"""The parts of a report, each from the runs it compares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ddvi_fast import _checks
from ddvi_fast.config.compose import from_dict
from ddvi_fast.paper.tables import COLUMNS, Summary, summarise
from ddvi_fast.report import page
from ddvi_fast.report.charts import COLOURS, bar_chart, line_chart
from ddvi_fast.report.decomposition import Decomposition, decompose, timings
from ddvi_fast.report.runs import SEED, Run, curves, differences, groups
from ddvi_fast.rng import Draws
from ddvi_fast.training.estimate import memory, parameters
from ddvi_fast.training.evaluate import EVALUATION_SEED_OFFSET
from ddvi_fast.training.run import Run as TrainedRun

_ROWS = 256  # test examples of the decomposition
_PICTURES = ("latents.png", "trajectory.png", "decoded.png")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What needs the run's weights and data: None with the reason where these are missing."""

    decomposition: Decomposition | None
    seconds: dict[str, float]
    parameters: dict[str, int]
    bytes: dict[str, int]
    missing: str = ""


def measure(run: Run) -> Measured:
    """Load the final weights and look at the bound and the cost of a batch; a run whose data or weights are not here says so."""
    try:
        config = from_dict(run.folder.config)
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            config = dataclasses.replace(config, device="cpu")
        loaded = TrainedRun.load(run.folder, config.device)
        dataset, experiment = loaded.dataset, loaded.experiment
    except _checks.InputError as error:
        return Measured(None, {}, {}, {}, " ".join(str(error).split()))
    draws = Draws(config.seed + EVALUATION_SEED_OFFSET)
    x = dataset.inputs(slice(0, _ROWS), "test")
    decomposition = decompose(experiment, x, draws)
    seconds = timings(experiment, dataset.inputs(slice(0, config.recipe.batch_size)), draws)
    return Measured(decomposition, seconds, parameters(experiment), memory(experiment, dataset, config.recipe.batch_size))


def overview(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        machine, versions = run.environment.get("machine", {}), run.environment.get("versions", {})
        where = ", ".join(machine.get("gpus") or [str(machine.get("processor"))])
        commit = str(run.environment.get("commit") or "-")
        begun = str(run.environment.get("time", "-")).replace("T", " ").replace("+00:00", " UTC")
        rows.append([run.name, begun, where, str(versions.get("torch")), commit[:10], "yes" if run.figures else "no"])
    return page.section("runs", "Runs", page.table(["run", "begun", "machine", "torch", "commit", "evaluated"], rows))


def settings(runs: Sequence[Run]) -> str:
    different = differences(runs)
    rows = [[name, *(_shown(value) for value in values)] for name, values in different.items()]
    same = "The runs have the same settings." if len(runs) > 1 else "One run: there is nothing to compare."
    pieces = [page.table(["setting", *(run.name for run in runs)], rows) if rows else page.paragraph(same)]
    pieces += [page.folded(f"all settings of {run.name}", json.dumps(run.folder.config, indent=2)) for run in runs]
    return page.section("settings", "Settings that differ", *pieces)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def figures_of_merit(runs: Sequence[Run]) -> str:
    evaluated = [run for run in runs if run.figures]
    names = [name for name in COLUMNS if any(name in run.figures for run in evaluated)]
    rows = []
    for members in groups(evaluated):
        label = members[0].name if len(members) == 1 else f"{len(members)} seeds: {members[0].name} ..."
        values = {name: [run.figures[name] for run in members if name in run.figures] for name in names}
        rows.append([label, *(interval(summarise(found)) if found else "-" for found in values.values())])
    if not rows:
        return ""
    note = "Means, with 95% intervals by Student's t where several runs differ by seed alone. Bounds are nats per test example."
    return page.section("figures", "Figures of merit", page.table(["run", *(COLUMNS[name].heading for name in names)], rows), page.paragraph(note))


def interval(summary: Summary) -> str:
    """A mean and its 95% interval.

    Example:
        >>> interval(Summary(-24.123, 0.456, 3)), interval(Summary(0.8567, None, 1))
        ('-24.12 ± 0.46', '0.857')
    """
    digits = 3 if abs(summary.mean) < 2 else 2
    return f"{summary.mean:.{digits}f}" + ("" if summary.half is None else f" ± {summary.half:.{digits}f}")


def learning(runs: Sequence[Run], colours: Sequence[int]) -> str:
    charts = [(name, line_chart(found, "step", colours)) for name, found in curves(runs).items()]
    note = page.paragraph("Frames are made for what follows the first twentieth of training.")
    return page.section("learning", "Learning curves", page.legend([run.name for run in runs], colours), page.cards(charts), note)


def bound(runs: Sequence[Run], measured: Sequence[Measured], colours: Sequence[int]) -> str:
    found = [(run, part.decomposition, colour) for run, part, colour in zip(runs, measured, colours, strict=True) if part.decomposition is not None]
    names = dict.fromkeys(name for _, part, _ in found for name in part.terms)
    rows = [
        [
            run.name,
            *(f"{part.terms[name]:.2f}" if name in part.terms else "-" for name in names),
            f"{sum(part.terms.values()):.2f} ± {part.error:.2f}",
        ]
        for run, part, _ in found
    ]
    chains = [(run, part, colour) for run, part, colour in found if part.steps]
    pieces = [page.table(["run", *names, "bound"], rows)] if rows else []
    if rows:
        note = f"Nats, means over the first {_ROWS} test examples at one sample each; ± is the standard error of the bound."
        pieces.append(page.paragraph(note))
    if chains:
        note = "Each step of a chain adds log r(y_t | y_t-1) − log q(y_t-1 | y_t, x) to the bound; sampling goes from left to right."
        chart = bar_chart([part.steps for _, part, _ in chains], "step t", [colour for *_, colour in chains])
        which = page.legend([run.name for run, *_ in chains], [colour for *_, colour in chains])
        pieces += [which, page.cards([("nats of each step", chart)]), page.paragraph(note)]
    without = [
        f"{run.name}: {part.missing or 'its posterior has no density'}" for run, part in zip(runs, measured, strict=True) if not part.decomposition
    ]
    return page.section("bound", "Where the bound comes from", *pieces, *(page.paragraph(line) for line in without))


def pictures(runs: Sequence[Run]) -> str:
    """The maps, trajectories and grids that the runs drew."""

    def found() -> Iterator[tuple[str, str]]:
        for name in _PICTURES:
            for run in runs:
                path = run.folder.figures / name
                if path.is_file():
                    what = name.removesuffix(".png")
                    yield f"{what}, {run.name}", page.image(path, f"{what} of the run {run.name}")

    return page.section("maps", "Latent maps and trajectories", page.cards(found(), "pictures"))


def cost(runs: Sequence[Run], measured: Sequence[Measured]) -> str:
    seconds = [[run.name, *(_number(run.figures.get(name)) for name in ("seconds", "cpu_seconds")), _a_step(run)] for run in runs]
    pieces = [page.table(["run", "training, s", "processor, s", "ms a step"], seconds)]
    known = [(run, part) for run, part in zip(runs, measured, strict=True) if part.seconds]
    tables: tuple[tuple[str, float, list[tuple[str, Mapping[str, float]]]], ...] = (
        ("ms on a batch, here and now", 1e3, [(run.name, part.seconds) for run, part in known]),
        ("parameters", 1, [(run.name, part.parameters) for run, part in known]),
        ("MB in a training step", 1e-6, [(run.name, part.bytes) for run, part in known]),
    )
    for heading, factor, rows in tables:
        names = dict.fromkeys(name for _, values in rows for name in values)
        cells = [[run, *(_scaled(values.get(name), factor) for name in names)] for run, values in rows]
        pieces += [f"<h3>{heading}</h3>", page.table(["run", *names], cells)] if rows else []
    return page.section("cost", "Time and memory", *pieces)


def _scaled(value: float | None, factor: float) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if factor == 1 else f"{value * factor:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _a_step(run: Run) -> str:
    """Milliseconds a step between the first record and the last, both by the run's clock."""
    first, last = run.records[0], run.records[-1]
    steps = last["step"] - first["step"]
    return f"{1000 * (last['seconds'] - first['seconds']) / steps:.2f}" if steps > 0 else "-"


def colours_of(runs: Sequence[Run]) -> list[int]:
    """A colour for each run."""
    return [number % COLOURS for number in range(len(runs))]


def titled(runs: Sequence[Run]) -> str:
    """What the report is of."""
    names = sorted({str(run.settings.get("dataset.name")) for run in runs})
    seeds = sorted({int(run.settings[SEED]) for run in runs if SEED in run.settings})
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''} on {', '.join(names)}" + (
        f", seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    )
