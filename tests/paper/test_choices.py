"""Tests of the choice of settings on a validation split: what is run, what wins, and which settings a table then has."""

import dataclasses
import json
import math
import re
import shutil

import pytest

from bench import records
from ddvi_fast import data
from ddvi_fast.config.compose import from_dict
from ddvi_fast.paper import choices, choose, reproduce
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper.table_spec import Entry, Table

SMALL = ("evaluation.iwae_samples=3", "evaluation.elbo_samples=3", "evaluation.limit=20", "evaluation.prior_samples=200",
         "prior.resolution=20", "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[16]")  # fmt: skip
ROWS = {
    "vae": Entry("Gaussian", ("method=vae",)),
    "aae": Entry("adversarial", ("method=aae",)),
    "ddvi": Entry("diffusion", ("method=ddvi",)),
    "bad": Entry("impossible", ("method=vae", "method.weight=1")),
}
COLUMNS = {"pinwheel": Entry("pinwheel", ("prior=pinwheel",)), "square": Entry("square", ("prior=square",))}
# The second is the better one for any method that learns; only a Gaussian posterior has the third; no method has the fourth.
CHOICES = {
    "slow": Entry("slow", ("recipe.lr=1e-6",)),
    "fast": Entry("fast", ("recipe.lr=3e-3",)),
    "iwae": Entry("iwae", ("recipe.lr=1e-6", "method.objective=iwae")),
    "chain": Entry("chain", ("method.chain.num_steps=3",)),
}
TINY = Table(
    "digits", "tiny", ROWS, {"pinwheel": COLUMNS["pinwheel"]}, ("evidence", "elbo", "latent_nll", "seconds"), common=("dataset=digits",),
    epochs=2, note="A remark.", choices=CHOICES, choose_by=("elbo", "evidence"),
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """``calls.table`` is the table that is loaded; ``calls.trained`` are the cells that were run, in this process."""

    class Calls:
        table, trained = TINY, []

        def here(self, function, items, jobs, device):
            self.trained.extend(items)
            return enumerate(map(function, items))

    made = Calls()
    made.trained = []
    monkeypatch.setattr(grid, "load", lambda name: made.table)
    monkeypatch.setattr(reproduce, "side_by_side", made.here)
    monkeypatch.setattr(choose, "side_by_side", made.here)
    monkeypatch.chdir(tmp_path)
    return made


def record_of(path, name="choices.json"):
    return json.loads((path / name).read_text())


def test_every_row_tries_every_choice_and_the_table_uses_the_best(calls, tmp_path, shell):
    output, calls.table = tmp_path / "out", grid.part(TINY, ["vae", "aae", "bad"])
    printed = shell("reproduce", "digits", "--choose", "--output", output, *SMALL)
    made = {(cell.row, cell.seed) for cell in calls.trained}
    assert made == {("vae", 1000), ("aae", 1000), ("bad", 1000)} and len(calls.trained) == 3 + 3 + 3
    configs = [from_dict(record_of(cell.folder, "config.json")) for cell in calls.trained if cell.finished]
    assert configs and all(config.dataset.validation == choices.VALIDATION and config.epochs == 2 for config in configs)
    record = record_of(output)
    assert record["chosen"]["vae"]["pinwheel"] == {"choice": "fast", "by": "elbo", "tried": 3}
    assert record["chosen"]["aae"]["pinwheel"]["by"] == "evidence" and record["chosen"]["aae"]["pinwheel"]["tried"] == 2
    assert record["chosen"]["bad"]["pinwheel"] == {"choice": None, "by": None, "tried": 0}
    tried = record["tried"]["vae"]["pinwheel"]
    assert tried["fast"]["figures"]["elbo"] > tried["slow"]["figures"]["elbo"] and "method.chain.num_steps" in tried["chain"]["not_possible"]
    assert "objective" in record["tried"]["aae"]["pinwheel"]["iwae"]["not_possible"]
    text = (output / "choices.md").read_text()
    assert re.search(r"\| pinwheel \| Gaussian \| ELBO \| -[\d.]+ \| \*\*-[\d.]+\*\* \| -[\d.]+ \| not possible \| 3 \|", text) and text in printed
    assert text == records.markdown_of(record), "the committed file can be made anew"
    assert "- Gaussian, pinwheel, chain: method.chain.num_steps: expected" in text and str(tmp_path) not in text

    calls.trained.clear()
    shell("reproduce", "digits", "--seeds", "1", "--output", output, *SMALL)
    assert {(cell.row, cell.seed) for cell in calls.trained} == {("vae", 0), ("aae", 0), ("bad", 0)}
    assert {cell.row: cell.config.recipe.lr for cell in calls.trained if cell.row != "bad"} == {
        row: 3e-3 if record["chosen"][row]["pinwheel"]["choice"] == "fast" else 1e-6 for row in ("vae", "aae")
    }
    assert all(cell.config.dataset.validation == 0 for cell in calls.trained)
    table = record_of(output, "table.json")
    assert table["choices"]["vae"] == {"pinwheel": "fast"} and table["choices"]["bad"] == {"pinwheel": None}
    assert "recipe.lr=3e-3" in table["settings"]["vae"]["pinwheel"] and "recipe.lr" not in table["settings"]["bad"]["pinwheel"]
    note = (output / "table.md").read_text()
    assert (
        "A remark. For every method and column one of 4 settings (slow, fast, iwae, chain) was chosen: the best by ELBO, or else evidence on" in note
    )
    assert "0.2 of the training examples; test examples have no part in it (runs as long as the table's, seed 1000)." in note
    assert "Settings tried, where the method has them: Gaussian 3, adversarial 2, impossible 0." in note and "Nothing was chosen" not in note


def test_without_choices_made_the_first_setting_is_used_and_the_table_says_so(calls, tmp_path, shell):
    calls.table = dataclasses.replace(grid.part(TINY, ["vae", "ddvi"]), choices={name: CHOICES[name] for name in ("chain", "slow")})
    shell("reproduce", "digits", "--seeds", "1", *SMALL)
    assert {cell.row: cell.config.method.chain.num_steps for cell in calls.trained}["ddvi"] == 3
    table = record_of(tmp_path / "runs" / "reproduce" / "digits", "table.json")
    assert table["note"] == "A remark. No settings were chosen: every method has the first of 2 (chain, slow)."
    assert table["choices"] == {"vae": {"pinwheel": None}, "ddvi": {"pinwheel": "chain"}}


def test_an_interrupted_choice_is_resumed_and_says_what_is_missing(calls, tmp_path, shell):
    two = {name: CHOICES[name] for name in ("slow", "fast")}
    calls.table = dataclasses.replace(grid.part(TINY, ["vae"]), choices=two, choose_seeds=2, choose_epochs=1)
    folder = tmp_path / "runs" / "reproduce" / "digits"
    shell("reproduce", "digits", "--choose", *SMALL)
    assert [cell.seed for cell in calls.trained] == [1000, 1000, 1001, 1001] and {cell.config.epochs for cell in calls.trained} == {1}
    first = record_of(folder)
    shutil.rmtree(calls.trained[-1].folder)
    calls.trained.clear()
    shell("reproduce", "digits", "--choose", *SMALL)
    assert [cell.seed for cell in calls.trained] == [1001]
    again = record_of(folder)
    for before, after in zip(first["tried"]["vae"]["pinwheel"].values(), again["tried"]["vae"]["pinwheel"].values(), strict=True):
        assert {**before["figures"], "seconds": 0} == {**after["figures"], "seconds": 0}
    means = [sum(cell.figures()["elbo"] for cell in cells) / 2 for cells in _by_choice(calls.table, folder)]
    assert [tried["figures"]["elbo"] for tried in again["tried"]["vae"]["pinwheel"].values()] == pytest.approx(means)


def _by_choice(table, folder):
    folder = folder.relative_to(folder.parents[2])
    return [choices.trial(table, "vae", "pinwheel", choice, folder, SMALL, 1, None).cells for choice in table.choices]


def test_choices_of_a_part_join_those_of_others_and_the_rest_has_none(calls, tmp_path, shell):
    two = {name: CHOICES[name] for name in ("slow", "fast")}
    calls.table = dataclasses.replace(TINY, columns=COLUMNS, choices=two)
    calls.table = grid.part(calls.table, ["vae", "aae"])
    folder = tmp_path / "runs" / "reproduce" / "digits"
    for column in COLUMNS:
        shell("reproduce", "digits", "--choose", "--rows", "vae", "--columns", column, "--epochs", "1", *SMALL)
    record = record_of(folder)
    assert {column: entry["choice"] for column, entry in record["chosen"]["vae"].items()} == {"pinwheel": "fast", "square": "fast"}
    assert record["columns"] == {"pinwheel": "pinwheel", "square": "square"}
    assert choices.used(calls.table, record)["aae", "square"] == "slow"
    note = choices.note(calls.table, record)
    assert "Nothing was chosen for adversarial (pinwheel), adversarial (square): the first setting, slow, is used." in note
    assert "All of them" not in note
    # Under other conditions earlier results are left out.
    shell("reproduce", "digits", "--choose", "--rows", "vae", "--columns", "square", "--epochs", "2", *SMALL)
    assert list(record_of(folder)["chosen"]["vae"]) == ["square"]


def test_other_columns_use_the_settings_of_the_first_one_that_is_chosen_on(calls, tmp_path, shell):
    two = {name: CHOICES[name] for name in ("slow", "fast")}
    calls.table = dataclasses.replace(grid.part(TINY, ["vae"]), columns=COLUMNS, choices=two, choose_columns=("square",), epochs=1)
    shell("reproduce", "digits", "--choose", *SMALL)
    assert {cell.column for cell in calls.trained} == {"square"}
    record = record_of(tmp_path / "runs" / "reproduce" / "digits")
    assert choices.used(calls.table, record) == {("vae", "pinwheel"): "fast", ("vae", "square"): "fast"}
    note = choices.note(calls.table, record)
    assert "For every method, on square, one of 2" in note and "All of them were tried for every method." in note
    assert "--columns: expected one of square" in shell("reproduce", "digits", "--choose", "--columns", "pinwheel", *SMALL, code=2)


def test_choices_of_another_version_of_the_table_are_refused(calls, tmp_path, shell):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "choices.json").write_text(json.dumps({"choices": {"slow": "recipe.lr=1e-6"}, "chosen": {}}))
    assert "choices.json: expected the choices of this version" in shell("reproduce", "digits", "--output", tmp_path / "out", *SMALL, code=2)


@pytest.mark.parametrize(
    ("tried", "metrics", "expected"),
    [
        ({"a": {"elbo": -3.0}, "b": {"elbo": -2.0}}, ["elbo"], ("b", "elbo", 2)),
        ({"a": {"gap": 3.0}, "b": {"gap": 4.0}}, ["gap"], ("a", "gap", 2)),  # lower is better
        ({"a": {"latent_nll": 3.0}, "b": {"latent_nll": 4.0, "elbo": 9.0}}, ["elbo", "latent_nll"], ("a", "latent_nll", 2)),
        ({"a": {"elbo": math.nan}, "b": {"elbo": -math.inf}, "c": {"elbo": -1e9}}, ["elbo"], ("c", "elbo", 3)),
        ({"a": {"elbo": 1.0}, "b": {"elbo": 1.0}}, ["elbo"], ("a", "elbo", 2)),
        ({"a": {"elbo": 1.0}, "b": {"mmd": 1.0}}, ["elbo"], None),
        ({"a": "no", "b": {"elbo": -1.0}}, ["elbo"], ("b", "elbo", 1)),
        ({"a": "no"}, ["elbo"], (None, None, 0)),
        ({"a": 1, "b": {"elbo": -1.0}}, ["elbo"], None),
    ],
)
def test_the_best_by_the_first_metric_that_all_have(tried, metrics, expected):
    kinds = {str: "not_possible", int: "unfinished", dict: "figures"}
    outcomes = {name: {kinds[type(outcome)]: outcome} for name, outcome in tried.items()}
    found = choices.best(outcomes, metrics)
    assert found == (None if expected is None else dict(zip(("choice", "by", "tried"), expected, strict=True)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choose_by": ()}, "choose_by: expected at least one"),
        ({"choose_by": ("ebo",)}, "did you mean elbo"),
        ({"choose_by": ("seconds",)}, "choose_by"),
        ({"choices": {"a": Entry("a", ("prior=square",))}}, "choices"),
        ({"choices": {"a": Entry("a", ("dataset.validation=0.5",))}}, "choices"),
    ],
)
def test_tables_that_cannot_choose(changes, words, one_line):
    one_line(lambda: dataclasses.replace(TINY, **changes), words)


def test_a_table_without_choices_has_nothing_to_choose(calls, shell):
    calls.table = dataclasses.replace(TINY, choices={})
    assert "--choose: expected a table with choices" in shell("reproduce", "digits", "--choose", code=2)


def test_bad_settings_are_an_error_and_not_an_impossible_choice(calls, shell):
    assert "max-minutes" in shell("reproduce", "digits", "--choose", "--max-minutes", "-1", code=2)
    assert "not allowed with" in shell("reproduce", "digits", "--choose", "--seeds", "2", code=2)


def test_a_specification_states_choices(monkeypatch, tmp_path, one_line):
    (tmp_path / "reproduce").mkdir()
    text = """
title: small
common: [dataset=digits]
rows: {vae: {overrides: [method=vae]}}
columns: {pinwheel: {overrides: [prior=pinwheel]}}
figures: [elbo]
choices:
  plain: {}
  wide: {label: "wider", overrides: ["dataset.encoder.hidden=[32]"]}
choose_by: [elbo, latent_nll]
choose_columns: [COLUMN]
"""
    monkeypatch.setattr(grid, "CONF", tmp_path)
    path = tmp_path / "reproduce" / "small.yaml"
    path.write_text(text.replace("COLUMN", "pinwheel"))
    table = grid.load("small")
    assert choices.stated(table) == {"plain": "", "wide": "dataset.encoder.hidden=[32]"} and table.choose_by == ("elbo", "latent_nll")
    path.write_text(text.replace("COLUMN", "pinwhel"))
    one_line(lambda: grid.load("small"), "choose_columns.*did you mean pinwheel")


def test_held_out_examples_are_training_examples(calls):
    """The runs that choose see no test example: what they are tested on is a part of what the table trains on."""
    trial = choices.trial(TINY, "vae", "pinwheel", "fast", grid.Path("runs"), SMALL, None, None)
    dataset = reproduce.load_dataset(trial.cells[0].config)
    trained_on = {tuple(row) for row in data.load("digits").train_inputs.flatten(1).tolist()}
    assert all(tuple(row) in trained_on for row in dataset.test_inputs.flatten(1).tolist()) and dataset.size("test") == 280
