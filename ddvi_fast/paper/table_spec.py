"""Specifications of the tables in `conf/reproduce/`: rows, columns and the runs of their cells.

A cell's folder carries a digest of its settings that differ from the defaults, so that a cell with other settings is another cell, and a
setting that a later version adds leaves the folder's name as it is. `check_folders` compares the settings of the runs that are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddvi_fast import _checks
from ddvi_fast._files import read_json
from ddvi_fast.config.compose import compose
from ddvi_fast.config.names import CONF, GROUPS
from ddvi_fast.config.schema import Config
from ddvi_fast.engine.run_folder import CONFIG, evaluated, read_evaluation
from ddvi_fast.engine.run_settings import MACHINE, OUTPUT
from ddvi_fast.paper.tables import COLUMNS

FAILURE = "failure.txt"  # the reason why a run is impossible, in its folder
_MADE = ("method", "prior", "seed", "run_dir")  # settings that the table makes itself
_QUIET = ("progress=off", "tensorboard=false", "figures=false", "overwrite=true")
_NAMES = {"digits": "Digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "omniglot": "Omniglot", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Entry:
    """A row or a column: its heading, its settings as overrides, and its fraction of the table's time budget."""

    label: str
    overrides: tuple[str, ...] = ()
    minutes: float | None = None


@dataclass(frozen=True)
class Table:
    """Contents of `conf/reproduce/NAME.yaml`: rows (methods) x columns (priors, or minutes) x seeds.

    Args:
        name: Name of the table.
        title: Title of the table; `{dataset}` is replaced by the data set of its runs.
        rows, columns: Rows and columns by name.
        figures: Names of the metrics in `evaluation.json`, in the order of the table's columns.
        common: Overrides of all cells.
        epochs: Epochs of each run, unless its row or column has others; None for the recipe's.
        max_minutes: Time budget of the longest run in minutes; None for no limit.
        curves: Metrics against which the first one of `figures` is drawn, one line a row through its columns (default none).
        note: A paragraph below the title.
        others: Heading of the published metrics beside ours, from `conf/paper_tables.yaml`.
        others_note: A sentence about these.
        choices: Settings by name that are tried for every row, of which one is chosen for each row and column on a validation split.
        choose_by: Metrics in order of preference; the first one that all runs of a row have decides.
        choose_seeds: Number of runs of each of the choices (seeds that the table does not use).
        choose_epochs: Epochs of these runs; None for the table's.
        choose_columns: Columns on which settings are chosen, each for itself; the other columns use those of the first one. None for all.

    Raises:
        InputError: Choices without a metric that tells which is better, on a column that does not exist, or of a setting that they cannot change.
    """

    name: str
    title: str
    rows: Mapping[str, Entry]
    columns: Mapping[str, Entry]
    figures: tuple[str, ...]
    common: tuple[str, ...] = ()
    epochs: int | None = None
    max_minutes: float | None = None
    curves: tuple[str, ...] = ()
    note: str = ""
    others: str = "paper"
    others_note: str = "The paper's own figures are those after 200 epochs."
    choices: Mapping[str, Entry] = field(default_factory=dict)
    choose_by: tuple[str, ...] = ()
    choose_seeds: int = 1
    choose_epochs: int | None = None
    choose_columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _checks.require(not self.choices or bool(self.choose_by), "choose_by", "at least one metric for the choices", self.choose_by)
        for name in self.choose_by:
            _checks.choice(name, [metric for metric, column in COLUMNS.items() if column.higher is not None], "choose_by")
        for choice in self.choices.values():
            for setting in (override.partition("=")[0] for override in choice.overrides):
                _checks.require(setting not in (*_MADE, "dataset", "dataset.validation"), "choices", "other settings", setting)

    @property
    def dataset(self) -> str:
        """The table's data set, unless an override chooses another."""
        return next(setting.partition("=")[2] for setting in self.common if setting.startswith("dataset="))


@dataclass(frozen=True)
class Cell:
    """One training run of a table."""

    row: str
    column: str
    seed: int
    config: Config = field(repr=False)
    overrides: tuple[str, ...] = field(default=(), repr=False)  # settings that differ from the defaults

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run_dir)

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and evaluated."""
        return evaluated(self.folder)

    @property
    def failure(self) -> str | None:
        """The reason why the run is impossible, if it was tried in vain."""
        path = self.folder / FAILURE
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def figures(self) -> dict[str, float]:
        """Metrics of a finished run."""
        return read_evaluation(self.folder)


def names() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in (CONF / "reproduce").glob("*.yaml"))


def load(name: str) -> Table:
    """The table `name`.

    Raises:
        InputError: No such table; the message has the nearest names.

    Example:
        >>> table = load("cifar10")
        >>> list(table.rows), list(table.columns)
        (['vae', 'iaf', 'aae', 'h_iaf', 'pis', 'ddvi'], ['pinwheel', 'swiss_roll', 'square'])
    """
    stated = _read(CONF / "reproduce" / f"{_checks.choice(name, names(), 'table')}.yaml")
    entries = {kind: _entries(stated.pop(kind, {})) for kind in ("rows", "columns", "choices")}
    lists = {key: tuple(stated.pop(key)) for key in ("figures", "common", "curves", "choose_by", "choose_columns") if key in stated}
    for column in lists.get("choose_columns", ()):
        _checks.choice(column, entries["columns"], "choose_columns")
    return Table(name, **entries, **lists, **stated)


def part(table: Table, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> Table:
    """`table` with these rows and columns alone, in its own order.

    Raises:
        InputError: A row or column that the table does not have.

    Example:
        >>> list(part(load("mnist"), ["ddvi", "vae"]).rows)
        ['vae', 'ddvi']
    """

    def chosen(entries: Mapping[str, Entry], names: Sequence[str] | None, argument: str) -> Mapping[str, Entry]:
        wanted = [_checks.choice(name, entries, argument) for name in (entries if names is None else names)]
        return {name: entry for name, entry in entries.items() if name in wanted}

    return dataclasses.replace(table, rows=chosen(table.rows, rows, "--rows"), columns=chosen(table.columns, columns, "--columns"))


def paper_figures(table: Table, dataset: str) -> dict[str, Any]:
    """Published metrics of `table`: row -> column -> metric -> [mean, interval]; empty if there are none for `dataset`."""
    return _read(CONF / "paper_tables.yaml").get(table.name, {}) if dataset == table.dataset else {}


def title(table: Table, dataset: str) -> str:
    """The heading of `table` with runs on `dataset`.

    Example:
        >>> title(load("ablation-sleep"), "digits")
        'Digits: what the sleep term is worth'
    """
    return table.title.replace("{dataset}", dataset_name(dataset))


def dataset_name(name: str) -> str:
    """Name of a data set in headings."""
    return _NAMES.get(name, name)


def cells(
    table: Table,
    seeds: int,
    folder: Path,
    overrides: Sequence[str] = (),
    epochs: int | None = None,
    max_minutes: float | None = None,
    chosen: Mapping[tuple[str, str], Sequence[str]] | None = None,
    first_seed: int = 0,
) -> list[Cell]:
    """All cells of `table` with their runs below `folder`.

    Args:
        table: The table.
        seeds: Number of runs of each row and column.
        folder: Folder of the runs.
        overrides: Settings of all runs, which take precedence over all others.
        epochs, max_minutes: Length of the runs instead of the table's.
        chosen: Settings by row and column, which take precedence over the table's.
        first_seed: Seed of the first run; the others follow.

    Raises:
        InputError: Settings that do not exist or are not possible.
    """
    _checks.require(seeds >= 1, "--seeds", "at least 1", seeds)
    _checks.require(max_minutes is None or max_minutes > 0, "--max-minutes", "a positive number", max_minutes)
    for override in overrides:
        name = override.partition("=")[0]
        _checks.require(name not in _MADE, "override", "a setting that the table does not make itself", override)
    limit = max_minutes or (table.max_minutes if epochs is None else None)
    made = []
    for row, column in ((row, column) for row in table.rows for column in table.columns):
        settings = [] if table.epochs is None or limit is not None else [f"epochs={table.epochs}"]
        settings += [*table.common, *table.rows[row].overrides, *table.columns[column].overrides]
        settings += [] if chosen is None else chosen.get((row, column), ())
        settings += [] if epochs is None else [f"epochs={epochs}"]
        settings += [] if limit is None else [f"max_minutes={limit * (table.columns[column].minutes or 1.0)}"]
        stated = _last_of_each([*settings, *overrides])
        config = compose(overrides, _last_of_each([*_QUIET, *settings]))
        made += [_cell(row, column, seed, config, stated, folder) for seed in range(first_seed, first_seed + seeds)]
    return made


def check_folders(cells: Sequence[Cell]) -> None:
    """Check that the folders of cells hold runs with the settings of the cells, or none.

    Raises:
        InputError: A folder holds a run with other settings, as after a change of a default, or one whose settings cannot be read.
    """
    for cell in cells:
        if not (cell.folder / CONFIG).exists() and not cell.finished:
            continue
        saved, own = differing(read_json(cell.folder / CONFIG)), differing(dataclasses.asdict(cell.config))
        names = [name for name in {**saved, **own} if _text(saved, name) != _text(own, name)]
        found = ", ".join(f"{name} {_text(saved, name)} (here {_text(own, name)})" for name in names)
        _checks.require(not names, f"run folder {cell.folder}", "a run with the settings of this cell", found, "--runs takes another folder")


def column_label(table: Table, column: str, max_minutes: float | None) -> str:
    """Heading of a column, with its minutes if it has any."""
    entry = table.columns[column]
    limit = max_minutes or table.max_minutes
    return entry.label if entry.minutes is None or limit is None else entry.label.format(minutes=round(entry.minutes * limit, 3))


def _cell(row: str, column: str, seed: int, config: Config, overrides: Sequence[str], folder: Path) -> Cell:
    config = dataclasses.replace(config, seed=seed)
    name = f"{row}-{column}-seed{seed}-{_digest(config)}"
    return Cell(row, column, seed, dataclasses.replace(config, run_dir=str(folder / name)), tuple(overrides))


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Overrides without those that a later one replaces; choices of groups come first, because they set whole groups."""
    last = {override.partition("=")[0]: override for override in overrides}
    return sorted(last.values(), key=lambda override: override.partition("=")[0] not in GROUPS)


def differing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a configuration by dotted name that differ from the defaults, apart from those of the output and the machine.

    Example:
        >>> differing({"epochs": 3, "seed": 0, "run_dir": "here", "recipe": {"lr": 0.5}})
        {'epochs': 3, 'recipe.lr': 0.5}
    """
    return dict(_different({name: value for name, value in config.items() if name not in (*OUTPUT, *MACHINE)}, dataclasses.asdict(Config())))


def _different(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            yield from _different(value, defaults[name], f"{prefix}{name}.")
        elif name not in defaults or json.dumps(value) != json.dumps(defaults[name]):
            yield f"{prefix}{name}", value


def _text(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "at its default"


def _digest(config: Config) -> str:
    return hashlib.sha256(json.dumps(differing(dataclasses.asdict(config)), sort_keys=True).encode()).hexdigest()[:8]


def _entries(stated: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    return {name: Entry(entry.get("label", name), tuple(entry.get("overrides", ())), entry.get("minutes")) for name, entry in stated.items()}


def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))
