"""DeepSpeed trains as the plain engine does, at every ZeRO stage, and its states pass from one to another."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.engine import world
from tests.engine.small import CHAIN, COMMON, SMOOTH, case, distance

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (the extra distributed)")

STEPS = 5
ALTERNATING = [*COMMON, "method=ddvi", *CHAIN, *SMOOTH, "method.sleep.alternating=true", "method.sleep.num_updates=2"]
FANTASIES = "method.sleep.data=false"  # rounding in float32 can draw another candidate for a row of data
PAIRS = case("ddvi")["overrides"]
KINDS = {"wake": [*PAIRS, FANTASIES], "wake and sleep": ALTERNATING, "discriminator": [*case("aae")["overrides"], FANTASIES]}
STAGES = {f"zero {stage}": {"kind": "deepspeed", "zero_stage": stage} for stage in range(4)}


def cases() -> dict[str, dict]:
    found = {}
    for kind, overrides in KINDS.items():
        for engine, options in {"parallel": {"kind": "parallel"}, **STAGES}.items():
            found[f"{kind}, {engine}"] = {"overrides": overrides, "steps": STEPS, **options}
    for stage in (0, 2, 3):
        options = {"kind": "deepspeed", "zero_stage": stage, "accumulation": 2}
        found[f"accumulated, zero {stage}"] = {"overrides": KINDS["wake and sleep"], "steps": STEPS, **options}
    for stage in range(4):
        found[f"fp16, zero {stage}"] = {
            "overrides": PAIRS, "steps": 2 * STEPS, "kind": "deepspeed", "zero_stage": stage, "precision": "fp16", "first_scale": 2.0**16
        }  # fmt: skip
        found[f"spoilt, zero {stage}"] = {"overrides": case("vae")["overrides"], "steps": 12, "spoil": 77, **STAGES[f"zero {stage}"]}
    found["pairs, parallel"] = {"overrides": PAIRS, "steps": STEPS, "kind": "parallel"}
    found["fp16, parallel"] = {"overrides": PAIRS, "steps": 2 * STEPS, "precision": "fp16", "first_scale": 2.0**16}
    return found


RELAY = [{"kind": "deepspeed", "zero_stage": 2}, {"kind": "parallel"}, {"kind": "deepspeed", "zero_stage": 3}, {"kind": "deepspeed"}]


def calls(following: dict[str, dict]) -> dict[str, tuple[str, dict]]:
    """What the processes compute, in this order."""
    found = {name: ("follow", settings) for name, settings in following.items()}
    return found | {"relay": ("relay", {"overrides": ALTERNATING, "engines": RELAY, "each": 3})}


@pytest.fixture(scope="module")
def groups() -> list[list[dict]]:
    """Results of two processes, of one, and of two that only count their threads."""
    named = {name: settings for name, settings in cases().items() if name in ("wake and sleep, zero 0", "wake and sleep, zero 3")}
    alone = calls(named | {"local": {"overrides": ALTERNATING, "steps": STEPS, "kind": "local"}})
    return world.run_groups((2, calls(cases())), (1, alone), (2, {"threads": ("exchanging_threads_left", cases()["wake, zero 0"])}))


@pytest.fixture(scope="module")
def pair(groups) -> list[dict]:
    return groups[0]


@pytest.fixture(scope="module")
def found(pair) -> dict[str, dict]:
    first, second = pair
    assert [first[name]["weights"] for name in cases()] == [second[name]["weights"] for name in cases()]
    return first


@pytest.fixture(scope="module")
def alone(groups) -> dict[str, dict]:
    return groups[1][0]


def furthest(one: dict, other: dict) -> float:
    assert len(one["losses"]) == len(other["losses"]) == STEPS
    return max(distance(one, other, step) for step in range(STEPS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", range(4))
def test_every_stage_trains_as_plain_data_parallelism(found, kind, stage):
    one, other = found[f"{kind}, zero {stage}"], found[f"{kind}, parallel"]
    assert distance(one, other, 0) < 1e-6
    assert furthest(one, other) < 1e-4
    assert other["losses"][0] != other["losses"][-1]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_accumulated_parts_train_as_the_whole(found, stage):
    assert furthest(found[f"accumulated, zero {stage}"], found["wake and sleep, parallel"]) < 1e-4


def test_one_process_is_the_local_engine(alone):
    assert alone["wake and sleep, zero 0"]["losses"] == alone["local"]["losses"]
    assert furthest(alone["wake and sleep, zero 3"], alone["local"]) < 1e-5


@pytest.mark.parametrize("engine", ["parallel", "zero 0", "zero 1", "zero 2", "zero 3"])
def test_overflow_in_fp16_lowers_the_scale_and_training_goes_on(found, engine):
    """From a scale of 2^16 the first steps overflow: weights stand still until the scale fits, and then the loss falls."""
    result = found[f"fp16, {engine}"]
    assert 1.0 < result["scale"] < 2.0**16
    assert 0 < result["overflows"] < 2 * STEPS
    plain = found["pairs, parallel"]["losses"]
    assert distance(result, found["pairs, parallel"], 0) < 1e-2
    assert result["losses"][0] != result["losses"][-1] and plain[0] != plain[-1]


@pytest.mark.parametrize("stage", range(4))
def test_a_loss_that_is_not_finite_is_named(found, stage):
    spoilt = found[f"spoilt, zero {stage}"]
    assert spoilt["what"] == "loss" and spoilt["examples"] == [77] and "kl" in spoilt["names"]


@pytest.mark.parametrize("size", [1, 2])
def test_states_pass_between_engines_and_stages(request, size):
    """Six steps under one, six under the next, against twelve under one of them."""
    for process in [request.getfixturevalue("alone")] if size == 1 else request.getfixturevalue("pair"):
        result = process["relay"]
        assert len(result["whole"]) == len(result["relayed"]) == 12
        pairs = zip(result["whole"], result["relayed"], strict=True)
        assert max(abs(one - other) / abs(one) for one, other in pairs) < 1e-4
        assert result["counts"] == [12, 24]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_leaving_ends_the_threads_that_serve_exchanges(groups):
    assert [process["threads"] for process in groups[2]] == [0, 0]
