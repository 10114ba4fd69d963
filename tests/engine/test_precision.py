"""Narrow products bias no bound by more than they may, family by family; the scale of fp16 losses."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast._checks import InputError
from ddvi_fast.config.compose import compose
from ddvi_fast.data import Dataset
from ddvi_fast.engine.engine import Engine
from ddvi_fast.native import loader
from ddvi_fast.objectives import Progress
from ddvi_fast.precision import NARROW, TRAINING, LossScale, in_force, products_in, support
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from ddvi_fast.training.run import load_dataset
from tests.engine.small import CHAIN, COMMON

FAMILIES = {name: [f"method={name}"] for name in ("vae", "iaf", "planar", "realnvp", "h_iaf", "hamiltonian", "pis")} | {
    "ddvi": ["method=ddvi", *CHAIN]
}
LIMIT = 0.02  # nats
STEPS, ROWS, SAMPLES = 15, 397, 8


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(compose(["dataset=digits"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_hardly_moves_the_bound_of_digits(dataset, family):
    """The same weights, after some training, and the same draws: what differs is the rounding of products."""
    experiment = build(compose(["dataset=digits", *COMMON, *FAMILIES[family], "prior=gaussian"]), dataset)
    objective = experiment.phases[0].objective
    engine = Engine(objective, Optimisation(1e-3))
    for step in range(STEPS):
        engine.run(dataset.inputs(torch.arange(64 * step, 64 * (step + 1))), Progress(4, 5, 50), Draws(0, 64 * step))
    objective.eval()
    x = dataset.inputs(split="test")[:ROWS]
    bounds = {}
    for precision in ("float32", "bf16"):
        with torch.no_grad(), products_in(precision, x.device)():
            bounds[precision] = experiment.posterior.log_weights(experiment.model, x, SAMPLES, Draws(1)).mean()
    assert bounds["bf16"] != bounds["float32"]
    assert abs(float(bounds["bf16"] - bounds["float32"])) < LIMIT


@pytest.mark.parametrize("precision", TRAINING)
def test_products_are_as_narrow_as_asked_for(precision):
    with products_in(precision, torch.device("cpu"))():
        found = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert found == NARROW.get(precision, torch.float32)


def test_the_scale_halves_on_overflow_and_doubles_after_good_steps():
    scale = LossScale(4.0, growth_steps=3)
    seen = []
    for overflow in (True, False, False, True, False, False, False, False):
        scale.update(overflow)
        seen.append(scale.value)
    assert seen == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0]


def test_overflow_without_a_scale_is_an_error():
    with pytest.raises(InputError, match=r"^gradient: expected finite numbers[^\n]*bf16"):
        LossScale(1.0).update(True)


def test_bf16_says_whether_it_is_emulated(monkeypatch):
    if not loader.available()[0]:
        pytest.skip(loader.available()[1])
    cpu = torch.device("cpu")
    native = loader.library().ddvi_isa() == 3
    assert in_force("bf16", cpu) == f"bf16 ({'native' if native else 'emulated'})"
    monkeypatch.setenv("DDVI_FAST_ISA", "avx2")
    assert in_force("bf16", cpu) == "bf16 (emulated)" and in_force("float32", cpu) == "float32"


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(InputError, match=r"^precision: expected float32 or fp16 on a GPU[^\n]*, got 'bf16'$"):
        products_in("bf16", torch.device("cuda"))
    assert support("fp16", torch.device("cuda")) == "native"
