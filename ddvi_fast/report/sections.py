"""Sections of a report, each from the measured runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.config.compose import from_dict
from ddvi_fast.gap import Gap
from ddvi_fast.paper.tables import COLUMNS, Summary, summarise
from ddvi_fast.report import page
from ddvi_fast.report.charts import COLOURS, bar_chart, group_chart, line_chart
from ddvi_fast.report.decomposition import Decomposition, decompose, timings
from ddvi_fast.report.runs import SEED, Run, curves, differences, groups
from ddvi_fast.rng import Draws
from ddvi_fast.training.estimate import memory, parameters
from ddvi_fast.training.evaluate import EVALUATION_SEED_OFFSET, GAP_ROWS, split_of_gap
from ddvi_fast.training.run import Run as TrainedRun

_ROWS = 256  # test examples of the decomposition
_PICTURES = ("latents", "trajectory", "decoded", "admixture")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run with the number of its color, and measurements that need its weights and data.

    Args:
        run: The run.
        colour: Number of its color in the charts.
        decomposition: Terms of the bound; None for a posterior without a density, and where weights or data are missing.
        gap: Gap and its parts; None as for `decomposition`.
        seconds, parameters, bytes: Time, parameters and memory by part; empty where weights or data are missing.
        missing: Reason why they are missing.
    """

    run: Run
    colour: int
    decomposition: Decomposition | None = None
    gap: Gap | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    missing: str = ""


def measure(run: Run, number: int) -> Measured:
    """Load the final weights of a run, decompose its bound, split its gap and measure the cost of a batch."""
    colour = number % COLOURS
    try:
        config = from_dict(run.folder.config)
        if config.device.startswith("cuda") and not torch.cuda.is_available():
            config = dataclasses.replace(config, device="cpu")
        loaded = TrainedRun.load(run.folder, config.device)
        dataset, experiment = loaded.dataset, loaded.experiment
    except _checks.InputError as error:
        return Measured(run, colour, missing=" ".join(str(error).split()))
    draws, rows = Draws(config.seed + EVALUATION_SEED_OFFSET), config.recipe.batch_size
    decomposition = decompose(experiment, dataset.inputs(slice(0, _ROWS), "test"), draws)
    gap = split_of_gap(config, experiment, dataset.inputs(slice(0, GAP_ROWS), "test")) if experiment.posterior.has_density else None
    seconds = timings(experiment, dataset.inputs(slice(0, rows)), draws)
    return Measured(run, colour, decomposition, gap, seconds, parameters(experiment), memory(experiment, dataset, rows))


def overview(parts: Sequence[Measured]) -> str:
    rows = []
    for run in (part.run for part in parts):
        machine, versions = run.environment.get("machine", {}), run.environment.get("versions", {})
        where = ", ".join(machine.get("gpus") or [str(machine.get("processor"))])
        commit = str(run.environment.get("commit") or "-")
        begun = str(run.environment.get("time", "-")).replace("T", " ").replace("+00:00", " UTC")
        rows.append([run.name, begun, where, str(versions.get("torch")), commit[:10], "yes" if run.figures else "no"])
    return page.section("runs", "Runs", page.table(["run", "begun", "machine", "torch", "commit", "evaluated"], rows))


def settings(parts: Sequence[Measured]) -> str:
    runs = [part.run for part in parts]
    rows = [[name, *(value if isinstance(value, str) else json.dumps(value) for value in values)] for name, values in differences(runs).items()]
    same = "The runs have the same settings." if len(runs) > 1 else "One run: there is nothing to compare."
    pieces = [page.table(["setting", *(run.name for run in runs)], rows) if rows else page.paragraph(same)]
    pieces += [page.folded(f"all settings of {run.name}", json.dumps(run.folder.config, indent=2)) for run in runs]
    return page.section("settings", "Settings that differ", *pieces)


def metrics(parts: Sequence[Measured]) -> str:
    evaluated = [part.run for part in parts if part.run.figures]
    names = [name for name in COLUMNS if any(name in run.figures for run in evaluated)]
    rows = []
    for members in groups(evaluated):
        label = members[0].name if len(members) == 1 else f"{len(members)} seeds: {members[0].name} ..."
        values = {name: [run.figures[name] for run in members if name in run.figures] for name in names}
        rows.append([label, *(interval(summarise(found)) if found else "-" for found in values.values())])
    if not rows:
        return ""
    note = "Means, with 95% intervals by Student's t where several runs differ only in their seed. Bounds are in nats per test example."
    return page.section("metrics", "Metrics", page.table(["run", *(COLUMNS[name].heading for name in names)], rows), page.paragraph(note))


def interval(summary: Summary) -> str:
    """A mean and its 95% interval.

    Example:
        >>> interval(Summary(-24.123, 0.456, 3)), interval(Summary(0.8567, None, 1))
        ('-24.12 ± 0.46', '0.857')
    """
    digits = 3 if abs(summary.mean) < 2 else 2
    return f"{summary.mean:.{digits}f}" + ("" if summary.half is None else f" ± {summary.half:.{digits}f}")


def learning(parts: Sequence[Measured]) -> str:
    charts = [(name, line_chart(found, "step", [part.colour for part in parts])) for name, found in curves([part.run for part in parts]).items()]
    if not charts:
        return ""
    note = page.paragraph("The axes cover what follows the first twentieth of training.")
    return page.section("learning", "Learning curves", _legend(parts), page.cards(charts), note)


def bound(parts: Sequence[Measured]) -> str:
    found = {part.run.name: part.decomposition for part in parts if part.decomposition is not None}
    names = dict.fromkeys(name for decomposition in found.values() for name in decomposition.terms)
    rows = [
        [run, *(f"{of.terms[name]:.2f}" if name in of.terms else "-" for name in names), f"{sum(of.terms.values()):.2f} ± {of.error:.2f}"]
        for run, of in found.items()
    ]
    pieces = []
    if rows:
        note = f"Nats, means over the first {_ROWS} test examples with one sample each; ± is the standard error of the bound."
        pieces += [page.table(["run", *names, "bound"], rows), page.paragraph(note)]
    if chains := [part for part in parts if part.decomposition is not None and part.decomposition.steps]:
        note = "Each step of a chain adds log r(y_t | y_t-1) − log q(y_t-1 | y_t, x) to the bound; sampling goes from left to right."
        chart = bar_chart([found[part.run.name].steps for part in chains], "step t", [part.colour for part in chains])
        pieces += [_legend(chains), page.cards([("nats of each step", chart)]), page.paragraph(note)]
    without = [f"{part.run.name}: {part.missing or 'its posterior has no density'}" for part in parts if part.decomposition is None]
    return page.section("bound", "Decomposition of the bound", *pieces, *(page.paragraph(line) for line in without))


def gap(parts: Sequence[Measured]) -> str:
    """The parts of the gap between evidence and bound, as a table and a chart."""
    found, gaps = [part for part in parts if part.gap is not None], [part.gap for part in parts if part.gap is not None]
    if not found:
        return ""
    names = list(dict.fromkeys(name for gap in gaps for name in gap.parts()))
    rows = [[part.run.name, *_of_gap(gap, names)] for part, gap in zip(found, gaps, strict=True)]
    values = [[float(gap.parts()[name].mean()) if name in gap.parts() else 0.0 for name in names] for gap in gaps]
    chart = page.cards([("nats of each part", group_chart(values, names, "part of the gap", [part.colour for part in found]))])
    notes = (
        f"Nats, means over the first {GAP_ROWS} test examples with their standard errors. Amortisation is what the bound gains if the output of the "
        "encoders is optimized for each example; steps is what a chain loses by its path, between two estimates; family is what remains.",
        "≥: no quadrature exists or it is turned off, and an importance-weighted bound stands for the evidence. "
        "A posterior with other auxiliary variables has their loss in its family.",
    )
    table = page.table(["run", "evidence", "gap", *names], rows)
    return page.section("gap", "Parts of the gap", table, _legend(found), chart, *map(page.paragraph, notes))


def _of_gap(gap: Gap, names: Sequence[str]) -> list[str]:
    """Cells of a gap in the table: evidence, gap, and its parts by name."""
    at_least = "" if gap.exact else "≥ "
    cells = {"evidence": at_least + _with_error(gap.evidence), "total": at_least + _with_error(gap.total)}
    cells |= {name: _with_error(value) for name, value in gap.parts().items()}
    cells["family"] = at_least + cells["family"]
    if gap.steps is not None and gap.steps_at_most is not None and bool((gap.steps_at_most > gap.steps).any()):
        cells["steps"] += f", at most {float(gap.steps_at_most.mean()):.2f}"
    return [cells.get(name, "-") for name in ("evidence", "total", *names)]


def _with_error(values: Tensor) -> str:
    """Mean of values [N] and its standard error.

    Example:
        >>> _with_error(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        '2.50 ± 0.65'
    """
    return f"{float(values.mean()):.2f} ± {float(values.std()) / max(1, len(values)) ** 0.5:.2f}"


def pictures(parts: Sequence[Measured]) -> str:
    """The maps, trajectories and grids that the runs drew."""
    paths = {f"{kind}, {part.run.name}": part.run.folder.figures / f"{kind}.png" for kind in _PICTURES for part in parts}
    found = [(title, page.image(path, title)) for title, path in paths.items() if path.is_file()]
    return page.section("maps", "Latent maps and trajectories", page.cards(found, "pictures"))


def cost(parts: Sequence[Measured]) -> str:
    seconds = [[part.run.name, *(_number(part.run.figures.get(name)) for name in ("seconds", "cpu_seconds")), _step_time(part.run)] for part in parts]
    pieces = [page.table(["run", "training, s", "processor, s", "ms per step"], seconds)]
    tables = (("ms on a batch, measured now", "seconds", 1e3), ("parameters", "parameters", 1), ("MB in a training step", "bytes", 1e-6))
    for heading, field, factor in tables:
        rows = {part.run.name: getattr(part, field) for part in parts if part.seconds}
        names = dict.fromkeys(name for values in rows.values() for name in values)
        cells = [[run, *(_scaled(values.get(name), factor) for name in names)] for run, values in rows.items()]
        pieces += [f"<h3>{heading}</h3>", page.table(["run", *names], cells)] if rows else []
    return page.section("cost", "Time and memory", *pieces)


def title(runs: Sequence[Run]) -> str:
    """Title of a report on runs."""
    names = sorted({str(run.settings.get("dataset.name")) for run in runs})
    seeds = sorted({seed for run in runs if isinstance(seed := run.settings.get(SEED), int)})
    several = f", seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''} on {', '.join(names)}{several}"


def _legend(parts: Sequence[Measured]) -> str:
    return page.legend([part.run.name for part in parts], [part.colour for part in parts])


def _scaled(value: float | None, factor: float) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if factor == 1 else f"{value * factor:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _step_time(run: Run) -> str:
    """Milliseconds per step between the first record and the last."""
    if not run.records:  # a method without steps
        return "-"
    first, last = run.records[0], run.records[-1]
    steps = last["step"] - first["step"]
    return f"{1000 * (last['seconds'] - first['seconds']) / steps:.2f}" if steps > 0 else "-"
