"""The fused parts of a training step on a device, in Triton's interpreter: losses and gradients are those of plain PyTorch."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from torch import nn

from ddvi_fast import _backend, dense, networks, priors, rng, testing, use_backend
from ddvi_fast._operands import ScheduleSpec
from ddvi_fast.engine.cuda_graph import DeviceProgress
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.finish import Finish
from ddvi_fast.objectives import Progress, Terms
from ddvi_fast.objectives.elbo import bound
from ddvi_fast.parity import normals
from ddvi_fast.posteriors.base import Encoded, draw_start
from ddvi_fast.posteriors.class_conditional import chosen_rows
from ddvi_fast.posteriors.learned_tables import chain_table, fused_tables
from ddvi_fast.posteriors.placing import fused_placement, standard_log_prob
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import NoiseSchedule, learned_betas

pytestmark = pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")
CPU = torch.device("cpu")


@contextlib.contextmanager
def fused():
    """Context in which tensors of the CPU take the way of a device, but for the six operations."""
    with use_backend("reference"), mock.patch.object(_backend, "fused", lambda device: "triton"):
        yield


def build_recipe(settings):
    """The last phase of the default recipe on a few digits, with a small denoiser."""
    from ddvi_fast.config.compose import compose
    from ddvi_fast.recipes.build import build
    from ddvi_fast.training.run import load_dataset

    config = compose(["dataset=digits", "limit=100", *settings])
    return build(config, load_dataset(config)).phases[-1]


def gradients(objective, x, finished):
    """Losses, means and gradients of every update of a step."""
    found = {}
    for number, update in enumerate(objective.updates(x, Progress(0.5, 1, 10), Draws(3, 40))):
        objective.zero_grad()
        terms = update.terms()
        loss, means = Finish(CPU)(terms) if finished else (terms.total(), terms.means())
        loss.backward()
        found |= {f"{number} {name}": value.detach() for name, value in {"loss": loss, **means}.items()}
        found |= {f"{number} {name}": value.grad for name, value in objective.named_parameters() if value.grad is not None}
    return found


@pytest.mark.parametrize("rows", [5, 24])
def test_a_step_of_the_released_recipe(rows, monkeypatch):
    from dataclasses import replace

    from bench.steps import images
    from bench.training import SMALL, build_objective

    objective = build_objective(replace(SMALL, num_steps=3, pixels=20, hidden=16, chain_hidden=16)).train()
    monkeypatch.setattr(type(objective.model.prior), "log_prob_kde", lambda prior, z: prior.log_prob(z))
    x = images(rows, 20, CPU)
    with use_backend("reference"):
        expected = gradients(objective, x, False)
    with fused():
        got = gradients(objective, x, True)
    assert got.keys() == expected.keys() and any("decoder" in name for name in got)
    for name, value in expected.items():
        size = float(value.abs().max())
        testing.assert_close(got[name], value, rtol=2e-4, atol=1e-5 * size + 1e-7, name=name)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        (
            "method.num_samples=1",
            "method.chain.eta=0.5",
            "method.chain.parametrisation=v",
            "method.coordinates=prior",
            "method.chain.learn_schedule=true",
        ),
        ("prior=square", "method.discrete_class=false"),
    ],
    ids=str,
)
def test_a_step_of_the_default_recipe(settings):
    """A joint update with drawn classes, pairs of data, a learned schedule and the exact pinwheel."""
    phase = build_recipe(settings)
    x = (torch.arange(12 * 64).view(12, 64) % 7 < 3).float()
    phase.objective.train()
    with use_backend("reference"):
        expected = gradients(phase.objective, x, False)
    with fused():
        got = gradients(phase.objective, x, True)
    assert got.keys() == expected.keys() and any("log_variance" in name for name in got) and any("decoder" in name for name in got)
    for name, value in expected.items():
        size = float(value.abs().max())
        testing.assert_close(got[name], value, rtol=2e-4, atol=3e-5 * size + 1e-7, name=name)


def test_an_engine_that_finishes_its_losses_trains_as_one_that_does_not():
    """Two steps of Adam, whose rate is a constant on the host."""
    from dataclasses import replace

    from bench.steps import images
    from bench.training import SMALL, build_objective

    x, found = images(6, 20, CPU), []
    for context in (use_backend("reference"), fused()):
        with context:
            objective = build_objective(replace(SMALL, num_steps=2, pixels=20, hidden=16, chain_hidden=16, sleep_updates=1)).train()
            objective.model.prior.log_prob_kde = objective.model.prior.log_prob
            engine = Engine(objective, Optimisation(1e-3, "constant", max_norm=1.0), CPU)
            if found:
                engine._finish = Finish(CPU)
            for number in range(2):
                terms = engine.run(x, Progress(0.0, 1, 10), Draws(3, 6 * number))
            found.append({**terms, **dict(objective.named_parameters())})
    for name, value in found[0].items():
        testing.assert_close(found[1][name].detach(), value.detach(), rtol=1e-4, atol=2e-5, name=name)


def test_a_loss_that_is_not_finite_stops_adam_and_is_named():
    with fused():
        finish = Finish(CPU)
        value = torch.tensor([1.0, torch.nan], requires_grad=True)
        loss, means = finish(Terms({"good": torch.ones(2, requires_grad=True), "bad": value}, {"good": 1.0, "bad": 0.5}))
        assert loss.isnan() and means["good"] == 1 and finish.any_lost() and finish.lost() == ["bad"] and finish.found == 1
        finish(Terms({"good": torch.ones(2, requires_grad=True)}, {"good": 1.0}))
        assert finish.found == 1, "from the first such loss on"


@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, torch.tensor(0.25)), (0.0, 2.0)])
@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4,), (3,)), ((), (4,))])
def test_the_end_of_a_loss(weights, shapes):
    """Terms of one length in one launch, others in plain PyTorch; a weight of zero on the host gives its term no gradient."""
    values = [torch.linspace(-1, 2, max(1, int(torch.Size(shape).numel()))).view(shape).requires_grad_() for shape in shapes]
    terms = Terms(dict(zip("ab", values, strict=True)), dict(zip("ab", weights, strict=True)))
    wanted = torch.autograd.grad(terms.total(), values, allow_unused=True)
    with fused():
        loss, means = Finish(CPU)(Terms(terms.values, terms.weights))
    got = torch.autograd.grad(loss, values, allow_unused=True)
    testing.assert_close(loss.detach(), terms.total().detach(), rtol=1e-6)
    assert {name: float(mean) for name, mean in means.items()} == pytest.approx({name: float(mean) for name, mean in terms.means().items()})
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.allclose(one, other))


@pytest.mark.parametrize("narrow", [None, torch.float16])
def test_a_layer_has_the_gradients_of_plain_products(narrow, monkeypatch):
    """Also the second derivative; operands of products are rounded to the narrow type, and sums are float32."""
    torch_mm = torch.mm  # which has its `out_dtype` on a GPU alone
    monkeypatch.setattr(torch, "mm", lambda left, right, out_dtype=None: torch_mm(left.to(out_dtype or left), right.to(out_dtype or right)))
    monkeypatch.setattr(dense, "narrow_type", lambda device: narrow)
    linear, x = networks.linear(5, 7, Draws(0), 0), torch.linspace(-1, 1, 30).view(2, 3, 5).requires_grad_()
    with fused():
        out = dense.dense(linear, x, "leaky_relu", 0.3, Draws(5), 1).float()
    plain = dense.dropout(nn.functional.leaky_relu(linear(x), dense.LEAKY_SLOPE), 0.3, Draws(5), 1)
    rtol = 1e-5 if narrow is None else 4e-3
    testing.assert_close(out.detach(), plain.detach(), rtol=rtol, atol=rtol)
    inputs = (x, linear.weight, linear.bias)
    for create in (False, True) if narrow is None else (False,):
        pairs = [torch.autograd.grad((value * value.detach().cos()).sum(), inputs, create_graph=create, retain_graph=True) for value in (out, plain)]
        for one, other in zip(*pairs, strict=True):
            testing.assert_close(one.detach(), other.detach(), rtol=4 * rtol, atol=4 * rtol)


def test_a_start_can_be_differentiated_twice():
    mean, log_var = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_().chunk(2, 1)
    with fused():
        got = draw_start(mean, log_var, 2, Draws(1))
    expected = mean + torch.exp(0.5 * log_var) * rng.normal(Draws(1), (2, 3, 2), rng.START)
    testing.assert_close(got.detach(), expected.detach(), rtol=1e-5, atol=1e-6)
    for value in (got, expected):
        first = torch.autograd.grad(value.square().sum(), log_var, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), log_var, retain_graph=True)[0]
        if value is got:
            found = first.detach(), second
        else:
            testing.assert_close(found[0], first.detach(), rtol=1e-4, atol=1e-5)
            testing.assert_close(found[1], second, rtol=1e-4, atol=1e-5)


def of_pinwheel(inputs):
    return (priors.make("pinwheel").push(inputs[0], torch.tensor([[0, 3, 9], [1, 1, 2]])),)


def of_placement(inputs):
    return fused_placement(Encoded(inputs[0][0], inputs[1][0], None), inputs[2], inputs[3]) or plain_placement(*inputs)


def plain_placement(mean, log_var, y, ratio):
    u = mean[0] + torch.exp(0.5 * log_var[0]) * y
    return u, standard_log_prob(u) + ratio + 0.5 * log_var[0].sum(-1)


def of_classes(inputs):
    return chosen_rows(inputs[:2], torch.tensor([1, 0, 1]))


def of_bound(inputs):
    return bound(*(value[..., 0] for value in inputs[:3]), 0.5)


def of_tables(inputs):
    raw, factors = inputs[0][0, :, 0], inputs[1][0, :, 0]
    spec = ScheduleSpec("vp", "v", 1.0, None)
    if (found := fused_tables(raw, factors, spec)) is not None:
        return tuple(found)
    schedule = NoiseSchedule(learned_betas(raw, "vp"), "vp")
    table = chain_table(schedule, factors, spec)
    return table, *schedule.divergence_table("v", 1.0, table[:, 2])


@pytest.mark.parametrize("function", [of_pinwheel, of_placement, of_classes, of_bound, of_tables])
def test_fused_parts_can_be_differentiated_twice(function):
    """Values, gradients and gradients of these are those of plain PyTorch."""
    values = [0.3 * normals(number, 2, 3, 2) for number in range(3)] + [0.3 * normals(3, 2, 3)]
    found = []
    for context in (use_backend("reference"), fused()):
        inputs = [value.clone().requires_grad_() for value in values]
        with context:
            outputs = function(inputs)
            loss = sum((output.square() * (1 + i)).sum() for i, output in enumerate(outputs))
            first = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
            second = torch.autograd.grad(sum(value.square().sum() for value in first if value is not None), inputs, allow_unused=True)
            plain = torch.autograd.grad(function(inputs)[0].sum(), inputs, allow_unused=True)
        found.append([*(output.detach() for output in outputs), *first, *second, *plain])
    assert sum(value is not None for value in found[0]) >= 3
    for expected, got in zip(*found, strict=True):
        if expected is None:
            assert got is None or not got.any()
        else:
            testing.assert_close(got.detach(), expected.detach(), rtol=2e-4, atol=2e-5 * float(expected.detach().abs().max()) + 1e-6)


def test_a_number_that_never_changes_stays_on_the_host():
    progress = DeviceProgress(4, 1, CPU)
    assert progress.varying(lambda now: 0.5) == 0.5 and isinstance(progress.varying(lambda now: 0.5), float)
    changing = progress.varying(lambda now: now.fraction)
    assert isinstance(changing, torch.Tensor) and changing == 0
    progress.move_to(Progress(0.5, 1, 4))
    assert progress.varying(lambda now: now.fraction) == 0.5
