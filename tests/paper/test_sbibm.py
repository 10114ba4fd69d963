"""The table of sbibm: its simulators, its metric, its command."""

from __future__ import annotations

import bz2
import functools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddvi_fast import InputError, _files
from ddvi_fast.cli.reproduce import main
from ddvi_fast.inference import Architecture, Training, fit_posterior
from ddvi_fast.paper import sbibm, sbibm_table, sbibm_tasks
from ddvi_fast.paper.sbibm_tasks import TASKS, animals, infected

INSTALLED = pytest.mark.skipif(sbibm_tasks.package() is None, reason="the package sbibm is not installed")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package with observation and reference draws of the task two_moons."""
    root = tmp_path / "package"
    for number in (1, 2):
        folder = root / "tasks" / "two_moons" / "files" / f"num_observation_{number}"
        folder.mkdir(parents=True)
        (folder / "observation.csv").write_text("data_1,data_2\n-0.6,0.2\n")
        lines = "\n".join(f"{a:.5f},{b:.5f}" for a, b in np.random.RandomState(number).rand(60, 2))
        (folder / "reference_posterior_samples.csv.bz2").write_bytes(bz2.compress(f"parameter_1,parameter_2\n{lines}\n".encode()))
    monkeypatch.setattr(sbibm_tasks, "package", lambda: root)
    return root


def test_the_infected_follow_the_equations_of_sir() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    z = TASKS["sir"]().prior(5)
    for (contact, recovery), shares in zip(z.double().numpy(), infected(z).numpy(), strict=True):

        def slope(t: float, u: np.ndarray, contact: float = contact, recovery: float = recovery) -> list[float]:
            return [-contact * u[0] * u[1], contact * u[0] * u[1] - recovery * u[1]]

        found = integrate.solve_ivp(slope, (0, 160), [1 - 1e-6, 1e-6], method="DOP853", rtol=1e-9, atol=1e-12, t_eval=17.0 * np.arange(10))
        np.testing.assert_allclose(shares, found.y[1], atol=1e-5)


def test_prey_and_predators_follow_the_equations_of_lotka_and_volterra() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    z = TASKS["lotka_volterra"]().prior(5)
    for rates, logs in zip(z.double().numpy(), animals(z).numpy(), strict=True):

        def slope(t: float, u: np.ndarray, rates: np.ndarray = rates) -> list[float]:
            return [rates[0] * u[0] - rates[1] * u[0] * u[1], -rates[2] * u[1] + rates[3] * u[0] * u[1]]

        found = integrate.solve_ivp(slope, (0, 20), [30.0, 1.0], method="DOP853", rtol=1e-10, atol=1e-12, t_eval=2.1 * np.arange(10))
        np.testing.assert_allclose(logs, np.log(found.y).reshape(-1), atol=1e-3)


def test_data_of_slcp_have_the_covariance_of_their_parameters() -> None:
    z = torch.tensor([[0.5, -1.0, 1.2, -0.8, 0.7]])
    x = TASKS["slcp"]().data(z.expand(100_000, 5)).unflatten(1, (4, 2))
    first, second, correlation = 1.2**2, 0.8**2, math.tanh(0.7)
    expected = torch.tensor([[first**2, correlation * first * second], [correlation * first * second, second**2]])
    torch.testing.assert_close(x.mean(0), z[:, :2].expand(4, 2), atol=0.02, rtol=0)
    for place in range(4):
        torch.testing.assert_close(x[:, place].T.cov(), expected, atol=0.04, rtol=0)


def test_the_prior_of_the_neuron_is_smooth() -> None:
    """Second differences of the weights, scaled as sbibm has it, are independent standard normal variables."""
    z = TASKS["bernoulli_glm"]().prior(100_000)
    size = 9
    steps = torch.eye(size) - torch.diag(torch.ones(size - 1), -1)
    smooth = steps @ steps + torch.diag((torch.arange(size) / size).sqrt())
    made = torch.cat((z[:, :1] / math.sqrt(2), z[:, 1:] @ smooth.T), 1)
    torch.testing.assert_close(made.T.cov(), torch.eye(size + 1), atol=0.03, rtol=0)


def test_two_moons_have_two_sides() -> None:
    """Parameters mirrored at the diagonal give the same data: |a + b| is all that the first coordinate sees."""
    task = TASKS["two_moons"]()
    z = torch.tensor([[0.3, 0.5], [-0.5, -0.3]])
    x = task.data(z.repeat_interleave(50_000, 0)).unflatten(0, (2, -1))
    # Centers are those of the moon: 0.25 and the mean of cos(angle) * 0.1, less the projections.
    center = torch.tensor([0.25 + 0.2 / math.pi - 0.8 / math.sqrt(2), 0.2 / math.sqrt(2)])
    torch.testing.assert_close(x.mean(1), center.expand(2, 2), atol=2e-3, rtol=0)


@INSTALLED
@pytest.mark.parametrize("name", TASKS)
def test_observations_are_typical_of_data_of_the_reference_draws(name: str) -> None:
    task = TASKS[name]()
    x, observed = task.data(task.reference(1)[:1000]), task.observed(1)
    below, above = (x < observed).float().mean(0), (x > observed).float().mean(0)
    assert len(task.observed(1)) == x.shape[1] and float(torch.maximum(below, above).max()) < 0.999


@INSTALLED
def test_the_order_of_the_distractors_is_that_of_the_package() -> None:
    order = torch.load(sbibm_tasks.files("slcp") / "permutation_idx.torch", weights_only=True)
    assert torch.equal(sbibm_tasks.distractors()[2], torch.as_tensor(order))


def test_the_metric_tells_equal_from_shifted_draws() -> None:
    reference = torch.randn(300, 2)
    assert abs(sbibm.c2st(reference, torch.randn(300, 2)) - 0.5) < 0.08
    assert sbibm.c2st(100 * reference, 100 * reference + 400) > 0.97  # standardized


def test_a_table_goes_on_from_what_is_there(package, tmp_path, monkeypatch, capsys) -> None:
    quick = functools.partial(fit_posterior, training=Training(steps=5), architecture=Architecture(num_steps=4, width=8, ensemble=2))
    monkeypatch.setattr(sbibm, "fit_posterior", quick)
    monkeypatch.setattr(sbibm, "DRAWS", 60)
    call = ["sbibm", "--rows", "two_moons", "--budgets", "40,50", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    main([*call, "observations=1"])
    first = _files.read_json(tmp_path / "out" / "table.json")
    assert [(cell["budget"], cell["simulated"], list(cell["c2st"])) for cell in first["cells"]] == [(40, 40, ["1"]), (50, 50, ["1"])]
    monkeypatch.setattr(sbibm, "fit_posterior", None)  # no posterior is fitted again
    main([*call, "observations=2"])
    second = _files.read_json(tmp_path / "out" / "table.json")
    assert all(len(cell["c2st"]) == 2 for cell in second["cells"]) and second["cells"][0]["c2st"]["1"] == first["cells"][0]["c2st"]["1"]
    assert "| two_moons | 40 |" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "runs" / "sbibm" / "two_moons-40-0")  # the table keeps a cell whose posterior is gone
    main([*call[:4], "50", *call[5:], "observations=2"])
    assert _files.read_json(tmp_path / "out" / "table.json")["cells"] == second["cells"]


def test_the_table_has_published_figures_beside_the_mean() -> None:
    cell = {"task": "slcp", "budget": 10_000, "seed": 0, "simulated": 10_000, "seconds": 1.0, "c2st": {"1": 0.75, "2": 0.85}}
    cell |= {"commit": "c", "processor": "p", "torch": "t"}
    row = sbibm_table.markdown({"command": "c", "cells": [cell]}).splitlines()[-1]
    assert [part.strip() for part in row.strip("|").split("|")][:8] == ["slcp", "10,000", "0.800", "0.750", "0.850", "2", "0.901", "SNLE 0.713"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "three_moons"], "--rows: expected one of"),
        (["--budgets", "1"], "--budgets: expected"),
        (["observations=11"], "observations: expected a number from 1 to 10"),
        (["observations=1", "observations=2"], "observations: expected one value"),
        (["--epochs", "3"], "--epochs: expected no such option for sbibm"),
        (["draws=3"], "sbibm: expected one of observations"),
        (["--seeds", "0"], "--seeds: expected"),
    ],
)
def test_arguments_that_the_table_does_not_have_are_refused(package, tmp_path, arguments: list[str], message: str) -> None:
    (package / "tasks" / "sbibm").mkdir()
    with pytest.raises(InputError, match=message):
        main(["sbibm", *arguments, "--runs", str(tmp_path)])


def test_a_missing_package_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sbibm_tasks, "package", lambda: None)
    with pytest.raises(InputError, match=r"pip install --no-deps sbibm==1\.1\.0"):
        main(["sbibm", "--runs", str(tmp_path)])
