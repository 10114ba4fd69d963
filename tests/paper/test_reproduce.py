"""Tests of a whole table in small: every cell is run once, and only unfinished cells are run again."""

import dataclasses
import functools
import json
import shutil

import pytest

from ddvi_fast import InputError, _json
from ddvi_fast._files import locked
from ddvi_fast.paper import reproduce
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper.table_spec import Entry, Table

SMALL = ("limit=256", "epochs=1", "evaluation.iwae_samples=3", "evaluation.elbo_samples=3", "evaluation.limit=20", "evaluation.prior_samples=200",
         "prior.resolution=20", "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[16]", "method.chain.num_steps=3")  # fmt: skip


UNTIMED = {"seconds": 0, "cpu_seconds": 0}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A table of two methods and one prior; a row that cannot be run."""
    rows = {
        "vae": Entry("Gaussian", ("method=vae",)),
        "ddvi": Entry("diffusion", ("method=ddvi",)),
        "bad": Entry("impossible", ("method=vae", "recipe.defects.standard_normal_top=true")),
    }
    columns, shown = {"pinwheel": Entry("pinwheel", ("prior=pinwheel",))}, ("evidence", "elbo", "latent_nll", "seconds")
    table = Table("digits", "tiny", rows, columns, shown, common=("dataset=digits",), note="A remark.")
    monkeypatch.setattr(grid, "load", lambda name: table)
    # Cells are run in this process, and recorded.
    trained = []

    def here(function, items, jobs, device):
        trained.extend(items)
        return enumerate(map(function, items))

    monkeypatch.setattr(reproduce, "side_by_side", here)
    monkeypatch.chdir(tmp_path)
    return trained


def test_a_table_is_resumed_and_never_repeated(tiny, tmp_path, shell):
    printed = shell("reproduce", "digits", "--seeds", "2", *SMALL)
    folder = tmp_path / "runs" / "reproduce" / "digits"
    assert [(cell.row, cell.seed) for cell in tiny] == [(row, seed) for seed in (0, 1) for row in ("vae", "ddvi", "bad")]
    record = json.loads((folder / "table.json").read_text())
    assert [("figures" in run, run["row"], run["seed"]) for run in record["runs"]] == [
        (True, "vae", 0), (True, "vae", 1), (True, "ddvi", 0), (True, "ddvi", 1), (False, "bad", 0), (False, "bad", 1),
    ]  # fmt: skip
    assert "standard_normal_top" in record["runs"][4]["failure"]
    assert str(tmp_path) not in (folder / "table.json").read_text()
    text = (folder / "table.md").read_text()
    assert "| pinwheel | Gaussian |" in text and "±" in text and "Not run:" in text and "A remark." in text
    assert (folder / "table.tex").read_text().startswith("% tiny") and (folder / "latents.png").stat().st_size > 10_000
    assert all(name in printed for name in ("table.json", "table.md", "table.tex", "latents.png"))

    weights = {path: path.read_bytes() for path in folder.rglob("weights.safetensors")}
    cut_short = next(path for path in folder.iterdir() if path.name.startswith("ddvi-pinwheel-seed1"))
    (cut_short / "evaluation.json").unlink()
    shutil.rmtree(next(path for path in folder.iterdir() if path.name.startswith("vae-pinwheel-seed0")))
    tiny.clear()
    shell("reproduce", "digits", "--seeds", "2", *SMALL)
    assert [(cell.row, cell.seed) for cell in tiny] == [("vae", 0), ("bad", 0), ("ddvi", 1), ("bad", 1)]
    assert all(path.read_bytes() == content for path, content in weights.items()), "a cell run again gives the same weights"
    again = json.loads((folder / "table.json").read_text())
    for before, after in zip(record["runs"], again["runs"], strict=True):
        assert {**before.get("figures", {}), **UNTIMED} == {**after.get("figures", {}), **UNTIMED}


def test_a_run_of_other_settings_in_a_cells_folder_stops_the_table(tiny, tmp_path, shell):
    """Nothing is trained, and nothing is changed."""
    cells = grid.cells(grid.load("digits"), 1, tmp_path / "runs" / "reproduce" / "digits", SMALL)
    other = json.dumps({**dataclasses.asdict(cells[1].config), "latent_dim": 4})
    cells[1].folder.mkdir(parents=True)
    (cells[1].folder / "config.json").write_text(other)
    assert "latent_dim 4 (here at its default)" in shell("reproduce", "digits", "--seeds", "1", *SMALL, code=2)
    assert not tiny and (cells[1].folder / "config.json").read_text() == other and len(list(cells[1].folder.parent.glob("*-seed0-*"))) == 1


def test_a_part_of_a_table_is_a_table(tiny, tmp_path, shell):
    shell("reproduce", "digits", "--seeds", "1", "--rows", "ddvi,vae", "--output", tmp_path / "part", *SMALL)
    record = json.loads((tmp_path / "part" / "table.json").read_text())
    assert list(record["rows"]) == ["vae", "ddvi"] == [run["row"] for run in record["runs"]]
    assert all(record["settings"][row]["pinwheel"].startswith(f"dataset=digits method={row} prior=pinwheel ") for row in record["rows"])
    assert (tmp_path / "part" / "table.json").read_text() == f"{_json.lines(record)}\n"


def test_a_cell_cut_short_before_it_was_a_run_starts_again(tiny, tmp_path):
    cells = grid.cells(grid.load("digits"), 1, tmp_path / "runs", SMALL)
    (cells[0].folder / "checkpoints").mkdir(parents=True)
    reproduce.run_cell(cells[0])
    assert cells[0].finished


def test_curves_go_through_the_columns_of_a_data_set(tiny, tmp_path, monkeypatch, shell):
    spec, passes = grid.load("digits"), {"short": 6, "long": 12}  # a row, and five more for the pairs of data
    columns = {name: Entry(name, ("prior=gaussian", f"max_passes={number}")) for name, number in passes.items()}
    table = dataclasses.replace(spec, columns=columns, figures=("nll", "elbo", "decoder_rows"), curves=("decoder_rows", "cpu_seconds"))
    monkeypatch.setattr(grid, "load", lambda name: table)
    drawn = {}
    monkeypatch.setattr(reproduce.plots, "curves", lambda path, rows, costs, panels, title, **_: drawn.update(panels) or path)
    shell("reproduce", "digits", "--seeds", "2", "--rows", "vae,ddvi", *(setting for setting in SMALL if not setting.startswith("epochs")))
    record = json.loads((tmp_path / "runs" / "reproduce" / "digits" / "table.json").read_text())
    assert set(drawn) == {("Digits", "decoder rows"), ("Digits", "CPU seconds")}
    x, y = drawn["Digits", "decoder rows"]["Gaussian"]
    assert x == [6 * 256, 12 * 256]
    own = [run["figures"]["nll"] for run in record["runs"] if (run["row"], run["column"]) == ("vae", "short")]
    assert len(own) == 2 and y[0] == pytest.approx(sum(own) / 2)
    assert list(drawn["Digits", "CPU seconds"]) == ["Gaussian", "diffusion"]


def test_two_calls_do_not_share_a_folder(tmp_path):
    lock = functools.partial(locked, tmp_path / "x", "reproduce")
    with lock(), pytest.raises(InputError, match=r"^reproduce .*x: expected .* got one held by process"), lock():
        pass
    with lock():
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digts"], "did you mean digits"),
        (["digits", "--epochs", "1", "--max-minutes", "2"], "not allowed with"),
        (["digits", "--seeds", "many"], "--seeds"),
        (["digits", "mnist"], "one table"),
        ([], "TABLE"),
    ],
)
def test_bad_arguments_are_one_line(shell, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in shell("reproduce", *arguments, code=2)
