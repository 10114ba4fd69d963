"""The study of posteriordb: distances against hand-made samples, the counter of densities, and its table."""

from __future__ import annotations

import json

import pytest
import torch

from bench import records
from bench.studies import posteriordb
from ddvi_fast.inference import Model

FIGURES = {"mean": 0.05, "deviation": 0.02, "c2st": 0.51, "wasserstein": 0.04, "effective": 0.9, "pareto_k": 0.3, "calls": 12345, "seconds": 60.0}


def made_up(method: str, **changed: float) -> dict:
    return {
        "name": "data-model",
        "method": method,
        "seed": 0,
        "dim": 3,
        "commit": "0123456789abcdef",
        "processor": "some processor",
        **FIGURES,
        **changed,
    }


def test_a_shift_is_its_wasserstein_distance() -> None:
    reference = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    moved = reference + torch.tensor([0.0, 0.5]) * reference.std(0)
    assert abs(posteriordb.wasserstein(moved.flip(0), reference) - 0.5) < 1e-5
    assert abs(posteriordb.wasserstein(moved[:1000], reference[:1000]) - 0.5 * float(reference.std(0)[1] / reference[:1000].std(0)[1])) < 1e-5


def test_a_column_that_another_one_determines_is_left_out() -> None:
    share = torch.rand(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = posteriordb._distinct(torch.cat((share, 1 - share, share**2), 1), torch.cat((share, 1 - share, share**2), 1))
    assert left.shape == right.shape == (50, 2)


def test_calls_are_rows_of_parameters() -> None:
    counted = posteriordb.Counted(Model(log_joint=lambda x, z: z.sum(-1)))
    counted.log_joint(None, torch.zeros(7, 3)), counted.log_joint(None, torch.zeros(2, 5, 3))
    assert counted.calls == 17


def test_the_table_counts_what_is_within_the_limits() -> None:
    text = posteriordb.markdown({"cells": [made_up("full"), made_up("diffusion", pareto_k=0.8), {**made_up("nuts"), "name": "other-one"}]})
    assert "full-rank Gaussian: 1 of 1 within all limits." in text and "diffusion: 0 of 1 within all limits." in text
    assert "| model | 3 | diffusion | 0.050 | 0.020 | 0.510 | 0.040 | 90% | 0.80 | 12,345 | 60 | no |" in text


def test_a_table_keeps_the_cells_that_are_not_made_anew(tmp_path) -> None:
    def add(*cells: dict) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for place, cell in enumerate(cells):
            (folder / f"{place}.json").write_text(json.dumps(cell))
        records.add_cells("posteriordb", folder, ("name", "method", "seed"), tmp_path / "results")

    add(made_up("full"), made_up("diffusion"))
    add(made_up("diffusion", mean=0.25), {**made_up("full"), "seed": 1})
    found = {(cell["method"], cell["seed"]): cell["mean"] for cell in records.read(tmp_path / "results" / "posteriordb.json")["cells"]}
    assert found == {("full", 0): 0.05, ("diffusion", 0): 0.25, ("full", 1): 0.05}
    assert (tmp_path / "results" / "posteriordb.md").read_text(encoding="utf-8").count("| model |") == 3


def test_a_name_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        posteriordb.main(["--cells", str(tmp_path), "run", "--names", "garch", "garch11"])
    assert "--names: expected the start of one of" in capsys.readouterr().err


def test_a_cell_is_computed_once(tmp_path):
    path, computed = tmp_path / "new" / "cell.json", []
    for expected in ({"mean": 0.5}, None):
        assert records.keep_cell(path, lambda: computed.append(1) or {"mean": 0.5}) == expected
    assert len(computed) == 1 and {"mean", "commit", "processor"} == records.read(path).keys() and records.read(path)["mean"] == 0.5
