"""One, two and four processes, and accumulated parts, follow the same trajectory; what couples the rows of a batch sees all of them."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import torch

from ddvi_fast import distributed
from ddvi_fast._checks import InputError
from ddvi_fast.distributed import Part, part_of_batch
from ddvi_fast.engine import checkpoint
from ddvi_fast.networks import BatchNorm
from tests.engine import world
from tests.engine.small import COUPLED, METHODS, NARROW, case, distance

STEPS, DOUBLE_STEPS, COUPLED_STEPS, SPOILT = 15, 5, 3, 77  # an epoch has 12 steps
ROWS = [0, 1, 7, 8]
# In float32, rounding now and then draws another candidate as the latent of a datum. The runs in float64 take pairs of data.
FANTASIES = ["method.sleep.data=false"]


def single(method: str, steps: int = STEPS, **options: str) -> dict[str, Any]:
    """Settings of a run in float32."""
    settings = case(method, steps, **options)
    return {**settings, "overrides": [*settings["overrides"], *FANTASIES]}


def calls(size: int, **more: tuple[str, dict]) -> dict[str, tuple[str, dict]]:
    """What the processes compute, in this order."""
    found = {method: single(method) for method in METHODS}
    found |= {f"{method} double": case(method, DOUBLE_STEPS, double=True) for method in METHODS}
    if size < 4:
        found |= {f"{method} double": case(method, COUPLED_STEPS, double=True) for method in COUPLED}
        found["spoilt"] = case("vae", spoil=SPOILT)
    return {name: ("follow", settings) for name, settings in found.items()} | more


@pytest.fixture(scope="module")
def groups() -> list[list[dict]]:
    """Results of one, two and four processes."""
    extra = {f"{method} accumulated": case(method, DOUBLE_STEPS, double=True, accumulation=4) for method in METHODS}
    extra |= {method + " local": single(method, 3, kind="local") for method in METHODS}
    more = {"shares": ("shares", {"rows": ROWS}), "threads_left": ("exchanging_threads_left", case("ddvi", 2))}
    alone = calls(1, **{name: ("follow", settings) for name, settings in extra.items()})
    return world.run_groups((1, alone), (2, calls(2, **more)), (4, calls(4)))


@pytest.fixture(scope="module")
def alone(groups) -> dict[str, dict]:
    return groups[0][0]


@pytest.fixture(scope="module")
def two(groups) -> list[dict]:
    return groups[1]


@pytest.fixture(scope="module")
def four(groups) -> list[dict]:
    return groups[2]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one(alone, two, method):
    for process in two:
        assert len(process[method]["losses"]) == STEPS
        assert distance(process[method], alone[method], 0) < 1e-6
        assert max(distance(process[method], alone[method], step) for step in range(STEPS)) < 1e-4
    assert two[0][method]["weights"] == two[1][method]["weights"]


@pytest.mark.parametrize("method", [*METHODS, *COUPLED])
def test_in_float64_nothing_is_left_but_rounding(alone, two, method):
    one, other = alone[f"{method} double"], two[0][f"{method} double"]
    assert max(distance(other, one, step) for step in range(len(one["losses"]))) < 1e-10
    assert one["losses"][0] != one["losses"][-1]


@pytest.mark.parametrize("method", METHODS)
def test_four_processes_train_as_one(alone, four, method):
    double = f"{method} double"
    for process in four:
        assert distance(process[method], alone[method], 0) < 1e-6
        assert max(distance(process[method], alone[method], step) for step in range(STEPS)) < 1e-4
        assert max(distance(process[double], alone[double], step) for step in range(DOUBLE_STEPS)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_parts_train_as_the_whole_batch(alone, method):
    one, other = alone[f"{method} double"], alone[f"{method} accumulated"]
    assert max(distance(other, one, step) for step in range(DOUBLE_STEPS)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_the_engine_of_one_process_is_the_local_one(alone, method):
    assert alone[f"{method} local"]["losses"] == alone[method]["losses"][:3]


def test_every_process_names_the_example_at_fault(alone, two):
    for found in (alone["spoilt"], *(process["spoilt"] for process in two)):
        assert found["what"] == "loss" and "reconstruction" in found["names"] and found["examples"] == [SPOILT]
        assert found["weights"] == alone["spoilt"]["weights"] or distance_of_weights(found, alone["spoilt"]) < 1e-5


def distance_of_weights(one: dict, other: dict) -> float:
    return max(abs(here - there) / abs(there) for here, there in zip(one["weights"], other["weights"], strict=True))


def test_parts_are_consecutive_and_cover_the_batch():
    rows = [row for index in range(4) for row in range(*Part(index, 4).rows(20).indices(20))]
    assert rows == list(range(20))
    with pytest.raises(InputError, match=r"^batch_size: expected a multiple of 3[^\n]*got 20$"):
        Part(0, 3).rows(20)


def test_coupled_rows_refuse_accumulation():
    with part_of_batch(Part(0, 2)):
        for join in (distributed.gathered, distributed.batch_mean):
            with pytest.raises(InputError, match=r"^accumulation: expected 1, got 2 \([^\n]*couples[^\n]*\)$"):
                join(torch.ones(3))


def test_batch_statistics_of_parts_are_torchs_of_the_whole(monkeypatch):
    """The parts' means are averaged here by hand: two copies of a layer meet at each mean."""
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, plain = BatchNorm(3).double(), torch.nn.BatchNorm2d(3).double()
    means = iter([x.mean((0, 2, 3)), (x - x.mean((0, 2, 3))[:, None, None]).square().mean((0, 2, 3))])
    monkeypatch.setattr(distributed, "batch_mean", lambda value: next(means))
    with part_of_batch(Part(0, 2)):
        found = ours(x[:3])
    torch.testing.assert_close(found, plain(x)[:3])
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_the_command_in_two_processes_is_the_command_in_one(tmp_path, shell):
    """Weights, figures of merit and records, which are written once; evaluation counts every row once."""
    settings = [*NARROW, "dataset=digits", "method=vae", "epochs=1", "engine=parallel", "progress=off", "evaluation.limit=31"]
    settings += ["evaluation.elbo_samples=3", "evaluation.iwae_samples=3", "evaluation.prior_samples=64"]
    assert "run folder" in shell("train", *settings, f"run_dir={tmp_path / '1'}")
    processes = world.start(["-m", "ddvi_fast.train", *settings, f"run_dir={tmp_path / '2'}"], 2)
    printed = [process.communicate(timeout=world.LIMIT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert ["run folder" in out for out, _ in printed] == [True, False]
    one, two = (json.loads((tmp_path / size / "evaluation.json").read_text()) for size in "12")
    for name in one.keys() - {"seconds", "cpu_seconds"}:
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert [len((tmp_path / size / "metrics.jsonl").read_text().splitlines()) for size in "12"] == [1, 1]
    weights = [checkpoint.load(tmp_path / size / "checkpoints" / "final")[0] for size in "12"]
    assert all(torch.allclose(weights[1][name], value, rtol=1e-4, atol=1e-6) for name, value in weights[0].items())


def test_shares_of_rows_are_disjoint_and_complete(two):
    found = [process["shares"] for process in two]
    for process in found:
        assert process["collected"] == [list(range(rows)) for rows in ROWS]
        assert process["gradient"] == [[4.0, 8.0, 12.0, 16.0], [0.5] * 2]
    assert math.isclose(found[0]["mean"], 0.5) and found[0]["any"] and found[1]["any"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_leaving_ends_the_threads_that_serve_exchanges(two):
    assert [process["threads_left"] for process in two] == [0, 0]
