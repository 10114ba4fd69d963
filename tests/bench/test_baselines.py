"""Tests of the baselines and problems: agreement with float64, counts of work, and detection of wrong providers."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import cases, problem, run
from bench.baselines import eager
from bench.baselines.training import Sizes
from bench.operations import OPERATIONS, Chain, Kde
from bench.semisupervised import SemiSupervisedTraining
from bench.training import SMALL, Training, step_flops
from bench.weights import network_flops

CPU = torch.device("cpu")
SMALL_SHAPES = {
    "noise": [{"N": 300, "D": 3}],
    "chain": [
        {"N": 300, "T": 4, "D": 3, "C": 2, "H": 64},
        {"N": 200, "T": 3, "D": 2, "C": 1, "H": 64, "kind": "deterministic"},
        {"N": 100, "T": 3, "D": 2, "C": 2, "H": 64, "G": 3},
    ],
    "sleep": [{"N": 300, "T": 5, "D": 3, "C": 2, "H": 64}],
    "elbo": [{"kind": kind, "N": 300, "P": 17} for kind in ("bernoulli", "gaussian", "binomial", "gaussian_kl", "log_mean_exp")],
    "kde": [{"N": 300, "M": 50, "D": 2}, {"N": 9, "M": 50, "D": 16}],
    "mmd": [{"N": 30, "M": 20, "P": 17}],
}


@pytest.fixture(autouse=True)
def leave_no_traces():
    """The baseline draws from torch's global generator, and torch.compile turns the checks of distributions off."""
    before = torch.distributions.Distribution._validate_args
    with torch.random.fork_rng():
        yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("operation", "shape"), [(name, shape) for name, shapes in SMALL_SHAPES.items() for shape in shapes], ids=str)
def test_baseline_and_ours_agree_with_float64(operation, shape, backward):
    made = OPERATIONS[operation](CPU, backward, **shape)
    for provider in cases.Case(operation, (), backward, frozenset()).providers:
        if provider != "compiled":
            made.check(provider)
            made.provider(provider)()


def test_the_compiled_baseline_is_the_baseline(monkeypatch):
    """Traced by the compiler, forward and backward; C++ of the traced operations is the compiler's affair and takes twenty seconds."""
    compiled, compiler = [], torch.compile

    def traced(function, **options):
        compiled.append(function)
        return compiler(function, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    made = OPERATIONS["elbo"](CPU, True, kind="gaussian_kl", N=3, P=2)
    made.check("compiled")
    made.provider("compiled")()
    assert len(compiled) == 2


@pytest.mark.parametrize(("kind", "rows"), [(Training, 16), (SemiSupervisedTraining, 24)])
@pytest.mark.parametrize("provider", ["eager", "ours", "ours_bf16"])
def test_the_training_steps_agree_with_float64(provider, kind, rows):
    made = kind(CPU, N=rows, T=4, small=True)
    made.check(provider)
    call = made.provider(provider)
    call()
    call()


def test_a_baseline_with_a_wrong_term_is_noticed(monkeypatch):
    monkeypatch.setattr("bench.baselines.semisupervised.SLEEP_TOP", 0.3)
    with pytest.raises(AssertionError):
        SemiSupervisedTraining(CPU, N=24, T=4, small=True).check("ours")


def test_the_baselines_do_not_import_the_package():
    for path in (Path(eager.__file__).parent).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] == "ddvi_fast" for name in names), path


def test_a_sample_of_the_baselines_own_noise_is_noise():
    x_t, noise = eager.add_noise(torch.zeros(20_000, 1), torch.zeros(20_000, dtype=torch.int64), torch.ones(1), torch.full((1,), 0.5))
    assert torch.equal(x_t, 0.5 * noise)
    assert abs(float(noise.mean())) < 4 / 20_000**0.5 and abs(float(noise.var()) - 1) < 4 * (2 / 20_000) ** 0.5


def _counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_chain_flops_are_those_that_torch_counts():
    made = Chain(CPU, False, N=8, T=3, D=3, C=2, H=64)
    assert made.work.flops == _counted(made.provider("eager")) == 8 * 3 * network_flops(3, 2, 64)
    # In the backward pass torch counts the gradients of every layer's input and weight: twice the forward pass.
    assert Chain(CPU, True, N=8, T=3, D=3, C=2, H=64).work.flops == 3 * made.work.flops


@pytest.mark.parametrize("sizes", [SMALL, Sizes()])
def test_training_flops_are_those_that_torch_counts(sizes):
    made = Training(CPU, N=4, T=4, small=sizes is SMALL)
    expected = step_flops(made.sizes, 4)
    # The gradient of the sleep term to its noised latents is not counted, and torch does not compute it.
    assert _counted(made.provider("eager")) == pytest.approx(expected, rel=0.01)


def test_semi_supervised_flops_are_those_that_torch_counts():
    made = SemiSupervisedTraining(CPU, N=30, T=4, small=True)
    assert _counted(made.provider("eager")) == pytest.approx(made.work.flops, rel=0.01)


class _Wrong(Kde):
    """A density that is off by a thousandth in float32."""

    def ours(self, inputs, draws, module):
        scale = 1.001 if inputs["z"].dtype == torch.float32 else 1
        return {key: scale * value for key, value in super().ours(inputs, draws, module).items()}


class _WrongGradient(Kde):
    """The right density, whose gradient is off in float32."""

    def ours(self, inputs, draws, module):
        scale = 1.001 if inputs["z"].dtype == torch.float32 else 1
        return {key: value.detach() + scale * (value - value.detach()) for key, value in super().ours(inputs, draws, module).items()}


@pytest.mark.parametrize("wrong", [_Wrong, _WrongGradient])
def test_a_wrong_provider_is_shown_as_failed_and_not_timed(monkeypatch, wrong):
    monkeypatch.setitem(OPERATIONS, "kde", wrong)
    case = cases.Case("kde", (("N", 300), ("M", 20), ("D", 2)), True, frozenset())
    results = run.run_case(case, CPU, ("eager", "ours"), 0.01, memory=False)["results"]
    assert "AssertionError" in results["ours"]["failed"] and "median" not in results["ours"]
    assert results["eager"]["median"] > 0


def test_a_wrong_baseline_is_noticed(monkeypatch):
    """Its error is the tolerance of the others."""
    density = eager.kde_log_density
    monkeypatch.setattr(eager, "kde_log_density", lambda *arguments: 1.01 * density(*arguments))
    for provider in ("eager", "ours"):
        with pytest.raises(AssertionError, match="baseline"):
            Kde(CPU, False, N=5, M=20, D=2).check(provider)


@pytest.mark.parametrize(("changed", "by", "passes"), [(0, 0.0, True), (5, 0.01, True), (20, 0.01, False), (5, 5.0, False), (1, float("nan"), False)])
def test_few_elements_may_lie_on_the_other_side_of_a_kink(changed, by, passes):
    exact = torch.linspace(1, 2, 1000, dtype=torch.float64)
    got = exact + 1e-6
    got[:changed] += by
    with contextlib.nullcontext() if passes else pytest.raises(AssertionError, match="elements differ"):
        problem.compare(got, exact + 1e-6, exact, bf16=False, name="gradient")
    if changed:
        with pytest.raises(AssertionError, match="elements differ"):
            problem.compare(got, exact + 1e-6, exact, bf16=False, name="z")
