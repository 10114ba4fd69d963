"""The Triton chain against the reference in float64, through the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dataclasses import replace

from ddvi_fast import _backend, parity, testing
from ddvi_fast.kernels import chain, weight_gradient
from tests.operands import TRITON_DEVICE, chain_operands, check_triton, run_triton

pytestmark = pytest.mark.usefixtures("poison_empty")

# N, T, D, C, H, G, and whether the network is residual
SHAPES = [
    (1, 2, 1, 0, 64, None, True),
    (2, 3, 2, 2, 128, None, False),
    (65, 2, 3, 1, 64, None, True),
    (5, 2, 5, 7, 64, 3, True),
    (63, 2, 2, 0, 64, 2, False),
    (3, 2, 16, 2, 256, None, True),
    (7, 2, 33, 64, 64, None, True),
    (4, 2, 64, 0, 128, 1, True),
    (0, 2, 2, 2, 64, None, True),
    (0, 2, 5, 0, 64, 2, True),
]
SMALL = (9, 3, 2, 2, 64, None)


def _case(*shape, source="given", residual=None):
    # Sums in another order than PyTorch's may be a few roundings further off: the floor.
    return replace(parity.chain_case(shape, source, residual), floor=3e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_values_and_all_gradients_are_within_the_error_budget_of_the_reference(shape):
    check_triton(_case(*shape[:-1], residual=shape[-1]))


@pytest.mark.parametrize("result", ["z", "path", "trajectory"])
def test_each_result_alone_may_have_an_upstream_gradient(result):
    check_triton(_case(*SMALL), upstream=(result,))


def test_without_noise_the_chain_is_deterministic_and_has_no_path():
    assert "path" not in check_triton(_case(*SMALL, source="deterministic"))


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_drawn_noise_is_that_of_the_reference_and_the_same_seed_gives_the_same_bits(latent):
    case = parity.chain_case((5, 2, latent, 2, 64, 2), "drawn")
    check_triton(case)
    first, second = run_triton(case), run_triton(case)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("hidden", [64, 128])
def test_bf16_rounds_hidden_products_alone(monkeypatch, hidden):
    monkeypatch.setattr(_backend, "_not_interpreted", lambda *asked: "")  # these kernels widen operands for the interpreter
    case = _case(6, 2, 2, 2, hidden, None)
    got, exact = run_triton(case, precision="bf16"), parity.run(case, "reference", dtype=torch.float64)
    for name, value in got.items():
        # Rounding to 8 bits, and ReLUs of hidden units near zero that it switches.
        error = (value.cpu() - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.06, f"{name}: relative error {error:.3g}"


def test_pieces_of_rows_and_steps_give_the_gradients_of_the_whole(monkeypatch):
    case = _case(40, 3, 2, 2, 64, 2)
    whole = run_triton(case)
    monkeypatch.setattr(weight_gradient, "SCRATCH_BYTES", 150_000)  # 32 rows and a step
    for name, value in run_triton(case).items():
        testing.assert_close(value, whole[name], rtol=0, atol=1e-5 * float(whole[name].abs().max()), name=name)


def test_unsupported_operands_are_named():
    def unsupported(*shape, **changes):
        operands = chain_operands(shape, device=TRITON_DEVICE)._replace(**changes)
        tensors = {name: value for name, value in operands._asdict().items() if isinstance(value, torch.Tensor)}
        return chain.unsupported(operands.precision, **tensors)

    assert unsupported(3, 2, 2, 2, 64, None) is None
    assert "hidden widths" in unsupported(3, 2, 2, 2, 96, None)
    assert "at most 64" in unsupported(3, 2, 65, 2, 64, None)
    assert "float32" in unsupported(3, 2, 2, 2, 64, None, y_T=torch.zeros(3, 2, dtype=torch.float64, device=TRITON_DEVICE))
    assert "precision" in unsupported(3, 2, 2, 2, 64, None, precision="int8")
