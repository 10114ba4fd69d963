"""Tests of the cells of a table: settings, folders, identity."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from ddvi_fast._files import write_json
from ddvi_fast.config.names import choices
from ddvi_fast.config.schema import Config
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.training.decoder_passes import decoder_rows, within_passes
from ddvi_fast.training.run import load_dataset


def cells(name, *overrides, seeds=2, **options):
    return grid.cells(grid.load(name), seeds, Path("runs"), overrides, **options)


@pytest.fixture
def square_alone(monkeypatch):
    """Tables of one column, for what does not concern the others: reading a configuration takes a while."""
    whole = grid.load

    def load(name):
        table = whole(name)
        return replace(table, columns={"square": table.columns["square"]}, rows={row: table.rows[row] for row in list(table.rows)[:1]})

    monkeypatch.setattr(grid, "load", load)


@pytest.mark.parametrize("name", ["ablation-sleep", "cifar10-semi", "digits"])
def test_every_cell_has_a_folder_of_its_own(name):
    table, made = grid.load(name), cells(name)
    assert len({cell.folder for cell in made}) == len(made) == 2 * len(table.rows) * len(table.columns)
    assert {cell.seed for cell in made} == {0, 1} and {cell.config.seed for cell in made} == {0, 1}
    assert not any(cell.config.figures or cell.config.tensorboard for cell in made)


def test_settings_win_in_order(square_alone):
    (cell, *_) = cells("mnist", "recipe.lr=0.01", "epochs=7", epochs=3)
    assert (cell.config.epochs, cell.config.recipe.lr) == (7, 0.01)
    cell = cells("mnist", "dataset=digits", epochs=3)[0]
    assert (cell.config.dataset.name, cell.config.epochs) == ("digits", 3)
    assert {cell.config.split_seed for cell in cells("digits")} == {0}


def test_epochs_of_a_column_stand_before_those_of_the_table_and_behind_those_asked_for():
    table = grid.part(grid.load("digits"), rows=["vae"])
    longer = dataclasses.replace(table.columns["swiss_roll"], overrides=(*table.columns["swiss_roll"].overrides, "epochs=400"))
    table = dataclasses.replace(table, columns={**table.columns, "swiss_roll": longer})
    stated = {cell.column: cell.config.epochs for cell in grid.cells(table, 1, Path("runs"))}
    assert (stated["square"], stated["swiss_roll"]) == (table.epochs, 400)
    assert {cell.config.epochs for cell in grid.cells(table, 1, Path("runs"), epochs=2)} == {2}


def test_a_folder_follows_what_is_run_and_not_where(square_alone):
    first, here, other = (cells("digits", *overrides)[0].folder for overrides in ((), ("data_dir=there", "threads=1"), ("recipe.lr=0.01",)))
    assert first == here != other


def test_a_setting_that_a_later_version_adds_leaves_folders_as_they_are(square_alone, monkeypatch, tmp_path):
    (before,) = cells("digits", seeds=1)
    saved = dataclasses.asdict(before.config)
    later = dataclasses.make_dataclass("Later", [("added", int, dataclasses.field(default=3))], bases=(Config,))
    monkeypatch.setattr(grid, "Config", later)
    same, other = (replace(before, config=later(**vars(before.config), added=added)) for added in (3, 4))
    assert grid._digest(same.config) == before.folder.name.rpartition("-")[2] != grid._digest(other.config)
    folder = tmp_path / "run"
    same.config.run_dir = str(folder)
    write_json(folder / "config.json", saved)
    grid.check_folders([same])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_dim": 3}, r"expected a run with the settings of this cell, got latent_dim 3 \(here at its default\) \(--runs"),
        ({"recipe": {"lr": 0.5}}, r"got .*recipe.lr 0.5 \(here "),
        ({"gone": True}, r"got gone true \(here at its default\)"),
        ({"seed": 1}, "got seed 1"),
        (None, "config.json: expected"),
    ],
)
def test_a_folder_with_other_settings_is_refused(square_alone, tmp_path, change, words, one_line):
    """A default that was changed since, a setting that was removed, a run that was copied: never taken as the cell's, never replaced."""
    (cell,) = grid.cells(grid.load("digits"), 1, tmp_path)
    grid.check_folders([cell])
    saved = dataclasses.asdict(cell.config)
    write_json(cell.folder / "config.json", saved | {"threads": 7, "progress": "on", "data_dir": "elsewhere"})
    grid.check_folders([cell])
    if change is None:
        (cell.folder / "config.json").unlink()
        write_json(cell.folder / "evaluation.json", {"elbo": -1.0})
    else:
        changed = {name: {**saved[name], **value} if isinstance(value, dict) else value for name, value in change.items()}
        write_json(cell.folder / "config.json", saved | changed)
    one_line(lambda: grid.check_folders([cell]), words)


def test_a_setting_of_all_runs_has_one_value(one_line):
    whole = grid.load("mnist-50")
    one_line(lambda: cells("mnist-50", "epochs=3", "epochs=4"), "epochs: expected one value, got 3 and 4")
    (cell,) = grid.cells(grid.part(whole, ["vae"], ["mnist"]), 1, Path("runs"), ["dataset.encoder.activation=relu"])
    assert (cell.config.dataset.encoder.activation, cell.config.dataset.encoder.hidden) == ("relu", [200, 200]), "the table's own stand behind"


@pytest.mark.parametrize("name", ["mnist", "ablation-sleep", "ablation-released", "timesteps"])
def test_a_table_on_other_data_says_so_and_has_no_figures_of_the_paper_beside_it(name):
    table, made = grid.load(name), cells(name, "dataset=digits", seeds=1, max_minutes=0.1)
    assert {cell.config.dataset.name for cell in made} == {"digits"} and all(cell.config.max_minutes <= 0.1 for cell in made)
    assert grid.title(table, "digits").startswith("Digits") and grid.title(table, table.dataset).startswith("MNIST")
    assert grid.paper_figures(table, "digits") == {}


def test_minutes_are_shared_out_by_the_columns():
    made = [cell for cell in cells("timesteps", seeds=1, max_minutes=4) if cell.row == "ddvi_50"]
    assert [cell.config.max_minutes for cell in made] == [1, 2, 4] and made[0].config.method.chain.num_steps == 50
    table = grid.load("timesteps")
    assert [grid.column_label(table, column, 4) for column in table.columns] == ["1 min", "2 min", "4 min"]
    assert grid.column_label(grid.load("mnist"), "square", None) == "square"


def test_each_released_mistake_is_switched_on_alone():
    by_row = {cell.row: cell.config for cell in cells("ablation-released", seeds=1)}
    defects = {row: {name for name, on in vars(config.recipe.defects).items() if on} for row, config in by_row.items()}
    assert defects["vae"] == defects["ddvi"] == set()
    alone = {
        "vae_dropout": "dropout_at_evaluation", "vae_log_var": "log_var_twice", "ddvi_unscaled": "unscaled_noise", "ddvi_top": "standard_normal_top",
    }  # fmt: skip
    assert all(defects[row] == {name} for row, name in alone.items())
    assert (by_row["ddvi_semi"].dataset.labels, by_row["ddvi_semi_more"].dataset.labels) == (1000, "released")
    assert all(config.dataset.encoder.dropout > 0 for config in by_row.values())


def test_methods_and_priors_of_all_tables_exist():
    methods, priors = set(choices("method")), set(choices("prior"))
    for name in grid.names():
        table = grid.load(name)
        stated = [*table.common, *(item for entry in [*table.rows.values(), *table.columns.values()] for item in entry.overrides)]
        assert {item.removeprefix("method=") for item in stated if item.startswith("method=")} <= methods
        assert {item.removeprefix("prior=") for item in stated if item.startswith("prior=")} <= priors


@pytest.mark.parametrize(("arguments", "words"), [({"seeds": 0}, "seeds"), ({"max_minutes": -1}, "max-minutes")])
def test_bad_sizes(square_alone, arguments, words, one_line):
    one_line(lambda: cells("digits", **arguments), words)


def test_a_part_of_a_table_keeps_its_order_and_names_what_it_lacks(one_line):
    table = grid.part(grid.load("mnist"), ["ddvi", "vae"], ["square"])
    assert (list(table.rows), list(table.columns)) == (["vae", "ddvi"], ["square"])
    assert table.rows["ddvi"] == grid.load("mnist").rows["ddvi"] and table.figures == grid.load("mnist").figures
    one_line(lambda: grid.part(table, columns=["sqare"]), r"--columns.*did you mean square")


@pytest.mark.parametrize("override", ["method=vae", "prior=square", "seed=3", "run_dir=x"])
def test_what_the_table_sets_cannot_be_set(square_alone, override, one_line):
    one_line(lambda: cells("digits", override), "the table does not make itself")


def test_unknown_tables_name_the_nearest(one_line):
    one_line(lambda: grid.load("digit"), "did you mean digits")


def test_the_rows_of_mnist_50_differ_in_the_method_alone_and_have_equal_passes():
    rows = {cell.row: cell.config for cell in cells("mnist-50", "dataset.name=digits", "max_passes=50", seeds=1) if cell.column == "mnist"}
    for config in rows.values():
        assert config.latent_dim == 50 and config.dataset.binarize and config.prior.name == "gaussian"
        assert all(network.hidden == [200, 200] and network.activation == "tanh" for network in (config.dataset.encoder, config.dataset.decoder))
        assert replace(config, method=rows["vae"].method, run_dir=None) == replace(rows["vae"], run_dir=None)
    dataset = load_dataset(rows["vae"])
    fitted = {row: within_passes(config, dataset) for row, config in rows.items()}
    assert {row: config.recipe.epochs for row, config in fitted.items()} == {
        "vae": 50, "ddvi": 50, "informed": 10, "iwae_5": 10, "iaf": 50, "iwae_50": 1,
    }  # fmt: skip
    assert {decoder_rows(config, dataset) for config in fitted.values()} == {50 * dataset.size()}
