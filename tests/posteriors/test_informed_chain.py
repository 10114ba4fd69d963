"""Informed steps with one backward pass for all of them, against a chain of each step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ddvi_fast
from ddvi_fast import _checks, rng, schedules, testing
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.native import loader
from ddvi_fast.posteriors import informed_chain
from ddvi_fast.posteriors.informed_chain import InformedSteps
from ddvi_fast.rng import Draws

STEPS, INFORMED, ROWS, DIM, CONTEXT = 6, 4, 70, 3, 5
PARTS = ("first", "hidden", "last", "last_bias", "embedding")
LAYOUTS = {"rows": ((2, ROWS), None), "one group after the other": ((3, 1, ROWS), 3), "rows of any group": ((2, ROWS), 3)}


def direct(v: Tensor, step: int) -> Tensor:
    """A direction that depends on the state and the step, and not on the states of other rows."""
    return (torch.sin(2 * v.detach().double()) * (1 + step)).to(v)


class Case:
    """Operands of informed steps, and the results and gradients of a run."""

    def __init__(self, layout: str = "rows", with_context: bool = True) -> None:
        self.rows, self.groups = LAYOUTS[layout]
        width = DIM + (CONTEXT if with_context else 0)
        self.network = ResidualMLP(DIM, width, STEPS, 64, self.groups, draws=Draws(1))
        self.labels = None if layout != "rows of any group" else torch.arange(2 * ROWS).view(2, ROWS) % 3
        table = schedules.make("cosine", STEPS).coefficients("v", final_variance=0.1)[:INFORMED]
        noise = rng.normal(Draws(3), (INFORMED, *self.rows, DIM), 1)
        start, gains = rng.normal(Draws(3), (*self.rows, DIM), 2), rng.normal(Draws(3), (1, INFORMED), 4)[0]
        context = rng.normal(Draws(3), (ROWS, CONTEXT), 3) if with_context else None
        self.operands = [start, context, table, noise, gains, *(getattr(self.network, name).detach() for name in PARTS)]

    def steps(self, table: Tensor, gains: Tensor) -> InformedSteps:
        return InformedSteps(StepView(self.network, torch.arange(INFORMED)), table, gains, direct)

    def results(self, dtype: torch.dtype, backend: str, parts: tuple[str, ...] = ("z", "path", "trajectory")) -> list[Tensor]:
        """Results, and the gradients of all operands under random upstream gradients of the results `parts`."""
        network = self.network.to(dtype)
        given = [None if value is None else value.to(dtype).clone().requires_grad_() for value in self.operands]
        start, context, table, noise, gains, *weights = given
        saved = {name: getattr(network, name) for name in PARTS}
        try:
            for name, weight in zip(PARTS, weights, strict=True):
                network._parameters[name] = weight
            with ddvi_fast.use_backend(backend):
                found = self.steps(table, gains).run(start, context, noise, self.labels, True)
                used = [getattr(found, part) for part in parts]
                loss = sum((testing.upstream_gradient(value, seed) * value).sum() for seed, value in enumerate(used))
                asked = [value for value in given if value is not None]
                gradients = torch.autograd.grad(loss, asked, allow_unused=True, materialize_grads=True)
        finally:
            network._parameters.update(saved)
            network.float()
        return [*(value.detach() for value in (found.z, found.path, found.trajectory)), *gradients]


@pytest.fixture(autouse=True)
def compiled() -> None:
    usable, reason = loader.available()
    if not usable:
        pytest.skip(reason)


@pytest.mark.parametrize("parts", [("z", "path", "trajectory"), ("z",), ("path",)], ids=str)
@pytest.mark.parametrize("with_context", [True, False], ids=["context", "no context"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_gradients_are_those_of_single_steps(layout, with_context, parts, monkeypatch):
    case = Case(layout, with_context)
    exact, plain = (case.results(dtype, "reference", parts) for dtype in (torch.float64, torch.float32))
    monkeypatch.setattr(InformedSteps, "_step_by_step", None)
    for number, values in enumerate(zip(case.results(torch.float32, "cpp", parts), plain, exact, strict=True)):
        testing.assert_within_budget(*values, factor=3, floor=3e-6, name=str(number))


def test_any_number_of_threads_gives_the_same_bits_twice():
    case, before = Case(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            found.append(case.results(torch.float32, "cpp"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, other) for others in found[1:] for first, other in zip(found[0], others, strict=True))


def test_a_part_of_the_gradients_is_the_same_as_all_of_them():
    case = Case()
    _, _, _, *whole = case.results(torch.float32, "cpp")
    for wanted in range(5):
        given = [value.clone().requires_grad_(place == wanted) for place, value in enumerate(case.operands[:5])]
        start, context, table, noise, gains = given
        found = case.steps(table, gains).run(start, context, noise, None, True)
        loss = sum((testing.upstream_gradient(value, seed) * value).sum() for seed, value in enumerate((found.z, found.path, found.trajectory)))
        torch.testing.assert_close(torch.autograd.grad(loss, given[wanted])[0], whole[wanted], rtol=1e-5, atol=1e-5)


def test_no_graph_and_no_second_derivative():
    case = Case()
    start, context, table, noise, gains = case.operands[:5]
    with torch.no_grad():
        assert not case.steps(table, gains).run(start, context, noise, None, True).z.requires_grad
    z = case.steps(table, gains.clone().requires_grad_()).run(start, context, noise, None, False).z
    with pytest.raises(_checks.InputError, match=r"^create_graph: expected False[^\n]*$"):
        torch.autograd.grad(z.sum(), [case.network.first], create_graph=True)


def test_other_backends_and_types_go_step_by_step(monkeypatch):
    case = Case()
    start, context, table, noise, gains = case.operands[:5]
    monkeypatch.setattr(informed_chain, "_FusedSteps", None)
    with ddvi_fast.use_backend("reference"):
        case.steps(table, gains).run(start, context, noise, None, True)
    case.network.double()
    assert case.steps(table, gains).run(*(value.double() for value in (start, context, noise)), None, True).z.dtype == torch.float64
