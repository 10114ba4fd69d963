"""Custom operators: torch.library.opcheck, torch.compile without a graph break, second derivatives, needed gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ddvi_fast
from ddvi_fast import InputError, _backend, denoisers, ops, parity, rng, schedules
from ddvi_fast.rng import DeviceDraws, Draws
from tests.operands import BACKENDS
from tests.operands import draw_normals as normals

OPERATIONS = [(backend, operation) for backend in BACKENDS for operation in _backend.OPERATIONS]
STEPS = 2  # the reference unrolls them
SCHEDULE = schedules.make("cosine", STEPS)
TABLE = SCHEDULE.coefficients("v")
DENOISER = denoisers.ResidualMLP(2, 3, STEPS, hidden_dim=64, draws=Draws(1))
GROUPED = denoisers.ResidualMLP(2, 3, STEPS, hidden_dim=64, groups=4, draws=Draws(1))

pytestmark = pytest.mark.usefixtures("validation")


class Recorder(TorchDispatchMode):
    """Dispatch mode that records the calls of our operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ddvi_fast":
            self.calls[function.__name__] = (function, args)
        return function(*args, **(kwargs or {}))


def recorded(operation: str, backend: str, indexed: bool) -> dict:
    """Calls that a small case of an operation makes, forward and backward; `indexed` ones have an index of the rows' groups."""
    cases = [case for case in parity.cases(operation, small=True) if ("indexed" in case.name) == indexed]
    with Recorder() as recorder:
        for case in cases[-7 if operation == "elbo" else -1 :]:  # its last seven have all four operators, forward and backward
            parity.run(case, backend)
    return recorder.calls


def fresh(value, requires_grad):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(requires_grad and value.is_floating_point())


# What torch.compile traces is the registration, which all backends share: it is checked with one of them.
CHECKS = {"triton": ("test_schema", "test_faketensor")}
INDEXED = [(backend, operation, True) for backend, operation in OPERATIONS if operation in ("chain", "sleep")]


@pytest.mark.parametrize(("backend", "operation", "indexed"), [*((*each, False) for each in OPERATIONS), *INDEXED])
def test_opcheck(backend, operation, indexed):
    calls = recorded(operation, backend, indexed)
    assert len([name for name in calls if "fill" not in name]) == (4 if operation == "elbo" else 2)
    for name, (operator, arguments) in calls.items():
        # Backward operators have no second derivative, which opcheck would test.
        inputs = tuple(fresh(value, "backward" not in name) for value in arguments)
        torch.library.opcheck(operator, inputs, test_utils=CHECKS.get(backend, "ALL"))


def mixed(y):
    """Groups of the rows, of which one is empty."""
    return torch.arange(len(y)) * 2 % 5 % 3


FUNCTIONS = {
    "chain": lambda y, c, draws: ops.sample_chain(y, c, DENOISER, TABLE, draws=draws).path,
    "trajectory": lambda y, c, draws: ops.sample_chain(y, c, DENOISER, TABLE, draws=draws, return_trajectory=True).trajectory,
    "deterministic": lambda y, c, draws: ops.sample_chain(y, c, DENOISER, SCHEDULE.coefficients("v", eta=0.0)).z,
    "sleep": lambda y, c, draws: ops.denoising_loss(y, torch.arange(len(y)) % STEPS, c, DENOISER, SCHEDULE, draws=draws.importance(1)),
    "chain of groups": lambda y, c, draws: ops.sample_chain(y, c, GROUPED, TABLE, draws=draws, groups=mixed(y)).path,
    "sleep of groups": lambda y, c, draws: ops.denoising_loss(
        y, torch.arange(len(y)) % STEPS, c, GROUPED, SCHEDULE, draws=draws, groups=mixed(y).flip(0)
    ),
    "noise": lambda y, c, draws: ops.add_noise(y, torch.arange(len(y)) % STEPS, SCHEDULE, draws=draws.advance(3).spread(2))[0],
    "kde": lambda y, c, draws: ops.kde_log_density(y, c[:, :2], (0.3, 1.0)),
    "mmd": lambda y, c, draws: ops.mmd(y, c[:, :2], [1.0, 5.0]),
    "bernoulli": lambda y, c, draws: ops.bernoulli_log_likelihood(y, torch.sigmoid(c[:, :2])),
    "gaussian": lambda y, c, draws: ops.gaussian_log_likelihood(y, c[:, :2], 0.3),
    "binomial": lambda y, c, draws: ops.binomial_log_likelihood(y, torch.ones_like(c[:, :2]), 2),
    "gaussian_kl": lambda y, c, draws: ops.gaussian_kl(y, y),
    "gaussian_log_prob": lambda y, c, draws: ops.gaussian_log_prob(y, c[:, :2], c[:, 1:]),
    "log_mean_exp": lambda y, c, draws: ops.log_mean_exp(y, 0),
    "rng": lambda y, c, draws: y * rng.normal(draws, (len(y), 2), 0) + rng.uniform(draws, (len(y), 2), 0) + rng.words(draws, (len(y), 2), 0) / 2**32,
}


def both_ways(function, compiled, rows, draws):
    """Value and gradient of the function as it is, and compiled."""
    results = []
    for call in (function, compiled):
        y = normals(rows, 2).requires_grad_()
        value = call(y, normals(rows, 3, seed=1), draws)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), y)))
    return zip(*results, strict=True)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_without_a_break(name, backend):
    if backend not in ("reference", *BACKENDS):
        pytest.skip(_backend.unavailable(backend))
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    with ddvi_fast.use_backend(backend):
        for plain, traced in both_ways(FUNCTIONS[name], compiled, 7, Draws(3)):
            torch.testing.assert_close(traced, plain)


@pytest.mark.parametrize(
    ("make", "names"),
    [(Draws, ("chain", "sleep of groups")), (lambda seed, first: DeviceDraws(Draws(seed, first).state()), ("chain of groups", "sleep"))],
    ids=["host", "device"],
)
def test_compiled_functions_follow_rows_draws_and_backend(make, names):
    def step(y, c, draws):
        return sum(FUNCTIONS[name](y, c, draws) for name in names)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for rows, first in ((7, 0), (9, 7), (12, 1 << 41)):
        for plain, traced in both_ways(step, compiled, rows, make(3, first)):
            torch.testing.assert_close(traced, plain)
    with ddvi_fast.use_backend("reference"):
        for plain, traced in both_ways(step, compiled, 12, make(3, 5)):
            torch.testing.assert_close(traced, plain)


def test_inductor_runs_the_operators():
    compiled = torch.compile(FUNCTIONS["gaussian_kl"], fullgraph=True)
    for plain, traced in both_ways(FUNCTIONS["gaussian_kl"], compiled, 7, None):
        torch.testing.assert_close(traced, plain)


@pytest.mark.parametrize(("backend", "operation"), OPERATIONS)
def test_second_derivatives_are_refused(backend, operation):
    case = parity.cases(operation, small=True)[-1]
    inputs, call = case.make()
    leaves = {name: value if name in case.constants else value.clone().requires_grad_() for name, value in inputs.items()}
    with ddvi_fast.use_backend(backend):
        value = next(iter(call(**leaves).values()))
        first = torch.autograd.grad(value.square().sum(), [each for each in leaves.values() if each.requires_grad], create_graph=True)
        with pytest.raises(InputError, match="create_graph: expected False, as the fused kernels have first derivatives only"):
            sum(each.sum() for each in first).backward()


def test_the_reference_has_second_derivatives():
    with ddvi_fast.use_backend("reference"):
        mean = normals(3, 2).requires_grad_()
        (first,) = torch.autograd.grad(ops.gaussian_kl(mean, mean).sum(), mean, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), mean)
    torch.testing.assert_close(second, 1 + 0.5 * mean.detach().exp())


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_computes_what_is_needed(backend):
    """With a frozen denoiser or a frozen start the operator computes only the other gradients."""
    y, c = normals(4, 2), normals(4, 3, seed=1)
    frozen = denoisers.ResidualMLP(2, 3, STEPS, hidden_dim=64).requires_grad_(False)
    for network, start, needed in ((frozen, y.clone().requires_grad_(), 0), (DENOISER, y, 2)):
        with ddvi_fast.use_backend(backend), Recorder() as recorder:
            ops.sample_chain(start, c, network, TABLE, draws=Draws(0)).path.sum().backward()
        flags = recorder.calls["chain_backward.default"][1][-2]
        assert flags[needed] and not flags[1] and flags[0] == (needed == 0) and not any(flags[7:])


def test_nothing_is_kept_where_nothing_is_trained():
    with Recorder() as recorder, torch.no_grad():
        ops.sample_chain(normals(4, 2), normals(4, 3), DENOISER, TABLE, draws=Draws(0))
    if "chain.default" in recorder.calls:
        assert recorder.calls["chain.default"][1][-2] == 0


@pytest.mark.parametrize("used", ["z", "path", "trajectory"])
def test_results_that_are_not_used_have_no_upstream_gradient(used):
    y = normals(4, 2).requires_grad_()
    gradients = []
    for backend in ("reference", *BACKENDS):
        with ddvi_fast.use_backend(backend):
            sample = ops.sample_chain(y, normals(4, 3), DENOISER, TABLE, draws=Draws(0), return_trajectory=True)
            gradients.append(torch.autograd.grad(getattr(sample, used).square().sum(), y)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5)
