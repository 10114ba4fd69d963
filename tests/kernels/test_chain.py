"""The Triton chain against the reference in float64, through the interpreter where there is no GPU."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ddvi_fast import rng, testing
from ddvi_fast.kernels import chain, chain_backward, weight_gradient
from ddvi_fast.reference import chain as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("y_T", "context", *ChainWeights._fields, "coefficients", "noise")
DRAWS = Draws(9, 1 << 34)


class Case(NamedTuple):
    groups: int | None
    rows: int
    latent: int
    context: int
    hidden: int
    steps: int
    residual: bool = True


def _normal(shape: tuple[int, ...], stream: int) -> Tensor:
    size = max(1, torch.Size(shape).numel())
    return rng.normal(Draws(4), (1, size), (1 << 20) + stream, device=DEVICE).flatten()[: torch.Size(shape).numel()].reshape(shape)


def _inputs(case: Case) -> list[Tensor | None]:
    lead = () if case.groups is None else (case.groups,)
    d, c, h, t = case.latent, case.context, case.hidden, case.steps
    shapes = [(case.rows, d), (case.rows, c), (h, d + c), (3, h, h), (d, h), (d,), (t, 4, h)]
    scales = [1, 1, (d + c) ** -0.5, (2 / h) ** 0.5, h**-0.5, 0.1, 0.3]
    tensors: list[Tensor | None] = [scale * _normal((*lead, *shape), i) for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))]
    coefficients = 0.3 + 0.5 * rng.uniform(Draws(5), (t, 5), 1 << 21, device=DEVICE)
    noise = _normal((t, *lead, case.rows, d), 8)
    return [tensors[0], tensors[1] if c else None, *tensors[2:], coefficients, noise]


def _state(draws: Draws) -> Tensor:
    return torch.tensor([draws.seed, draws.first_index], dtype=torch.int64, device=DEVICE)


def _triton(inputs: list[Tensor | None], case: Case, upstream: tuple, precision: str = "float32", state: Tensor | None = None) -> list[Any]:
    """Results, then gradients; with a state the noise is drawn and its gradient left out."""
    common = (*inputs[:8], None if state is not None else inputs[8], state, 0, max(1, case.rows), case.residual, precision)
    results = chain.forward(*common, True)
    needed = [value is not None for value in inputs[:8]] + [inputs[8] is not None and state is None]
    return [*results, *chain.backward(*common, results[2], *upstream, needed)]


def _plain(inputs: list[Tensor | None], case: Case, upstream: tuple, dtype: torch.dtype) -> list[Any]:
    leaves = [None if value is None else value.to(dtype).requires_grad_() for value in inputs]
    results = reference.sample_chain(leaves[0], leaves[1], ChainWeights(*leaves[2:7]), leaves[7], leaves[8], case.residual)
    total = sum((got * given.to(dtype)).sum() for got, given in zip(results, upstream, strict=True) if given is not None and got is not None)
    given = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad(total, given, allow_unused=True))
    filled = [None if leaf is None else next(gradients) for leaf in leaves]
    zeros = [None if leaf is None else torch.zeros_like(leaf) if value is None else value for leaf, value in zip(leaves, filled, strict=True)]
    return [*(None if value is None else value.detach() for value in results), *zeros]


def _upstream(inputs: list[Tensor | None]) -> tuple[Tensor, Tensor | None, Tensor]:
    y, steps = inputs[0], inputs[7].shape[0]
    return _normal(y.shape, 20), None if inputs[8] is None else _normal(y.shape[:-1], 21), _normal((steps + 1, *y.shape), 22)


def _compare(case: Case, inputs: list[Tensor | None], upstream: tuple) -> None:
    got = _triton(inputs, case, upstream)
    plain, exact = (_plain(inputs, case, upstream, dtype) for dtype in (torch.float32, torch.float64))
    for name, *values in zip(("z", "path", "trajectory", *NAMES), got, plain, exact, strict=True):
        if values[1] is None:
            assert values[0] is None, name
            continue
        # Sums in another order than PyTorch's may be a few roundings further off: the floor.
        testing.assert_within_budget(*values, floor=3e-6, name=name)


CASES = [
    Case(None, 1, 1, 0, 64, 2),
    Case(None, 2, 2, 2, 128, 3, residual=False),
    Case(None, 65, 3, 1, 64, 2),
    Case(3, 5, 5, 7, 64, 2),
    Case(2, 63, 2, 0, 64, 2, residual=False),
    Case(None, 3, 16, 2, 256, 2),
    Case(None, 7, 33, 64, 64, 2),
    Case(1, 4, 64, 0, 128, 2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_values_and_all_gradients_are_within_the_error_budget_of_the_reference(poison_empty, case):
    inputs = _inputs(case)
    _compare(case, inputs, _upstream(inputs))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_result_alone_may_have_an_upstream_gradient(poison_empty, which):
    case = Case(None, 9, 2, 2, 64, 3)
    inputs = _inputs(case)
    _compare(case, inputs, tuple(value if i == which else None for i, value in enumerate(_upstream(inputs))))


def test_without_noise_the_chain_is_deterministic_and_has_no_path(poison_empty):
    case = Case(None, 9, 2, 2, 64, 3)
    inputs = [*_inputs(case)[:8], None]
    _compare(case, inputs, _upstream(inputs))


@pytest.mark.parametrize("case", [Case(None, 0, 2, 2, 64, 2), Case(2, 0, 5, 0, 64, 2)], ids=["plain", "grouped"])
def test_no_rows_give_empty_results_and_zero_gradients(case):
    inputs = _inputs(case)
    z, path, trajectory, *gradients = _triton(inputs, case, _upstream(inputs))
    assert z.shape == inputs[0].shape and path.shape == z.shape[:-1] and trajectory.shape == (case.steps + 1, *z.shape)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_drawn_noise_is_that_of_the_reference_and_the_same_seed_gives_the_same_bits(poison_empty, latent):
    case = Case(2, 5, latent, 2, 64, 2)
    inputs = _inputs(case)
    inputs[8] = reference.chain_noise(DRAWS, case.steps, (2, 5), latent, inputs[0])
    upstream = _upstream(inputs)
    given, drawn, again = (_triton(inputs, case, upstream, state=state) for state in (None, _state(DRAWS), _state(DRAWS)))
    for name, value, expected, repeated in zip(("z", "path", "trajectory", *NAMES[:8]), drawn, given, again, strict=False):
        testing.assert_close(value, expected, rtol=0, atol=2e-5 * float(expected.abs().max()), name=name)
        assert torch.equal(value, repeated), name


@pytest.mark.parametrize("hidden", [64, 128])
def test_bf16_rounds_hidden_products_alone(poison_empty, hidden):
    case = Case(None, 6, 2, 2, hidden, 2)
    inputs = _inputs(case)
    upstream = _upstream(inputs)
    got, exact = _triton(inputs, case, upstream, "bf16"), _plain(inputs, case, upstream, torch.float64)
    for name, value, expected in zip(("z", "path", "trajectory", *NAMES), got, exact, strict=True):
        # Rounding to 8 bits, and ReLUs of hidden units near zero that it switches.
        error = (value - expected).norm() / expected.norm()
        assert 0 < error < 0.06, f"{name}: relative error {error:.3g}"


def test_pieces_of_rows_and_steps_give_the_gradients_of_the_whole(poison_empty, monkeypatch):
    case = Case(2, 40, 2, 2, 64, 3)
    inputs = _inputs(case)
    whole = _triton(inputs, case, _upstream(inputs))
    monkeypatch.setattr(weight_gradient, "SCRATCH_BYTES", 150_000)  # 32 rows and a step
    for name, value, expected in zip(("z", "path", "trajectory", *NAMES), _triton(inputs, case, _upstream(inputs)), whole, strict=True):
        testing.assert_close(value, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), name=name)


def test_gradients_that_nobody_needs_are_none():
    case = Case(None, 3, 2, 2, 64, 2)
    inputs = _inputs(case)
    common = (*inputs, None, 0, 3, True, "float32")
    trajectory = chain.forward(*common, True)[2]
    gradients = chain.backward(*common, trajectory, inputs[0], None, None, [True] + 8 * [False])
    assert gradients[0] is not None and gradients[1:] == 8 * [None]


def test_what_the_kernels_cannot_run_is_said():
    inputs = _inputs(Case(None, 3, 2, 2, 64, 2))
    assert chain.unsupported(*inputs) is None
    assert "hidden widths" in chain.unsupported(*_inputs(Case(None, 3, 2, 2, 96, 2)))
    assert "at most 64" in chain.unsupported(*_inputs(Case(None, 3, 65, 2, 64, 2)))
    assert "float32" in chain.unsupported(inputs[0].double(), *inputs[1:])
    assert "precision" in chain.unsupported(*inputs, precision="int8")


def test_compilations_have_a_type_or_value_for_every_parameter():
    for compiled in itertools.chain(chain.compilations(), chain_backward.compilations(), weight_gradient.compilations()):
        assert list(compiled.signature) == list(compiled.kernel.arg_names)
