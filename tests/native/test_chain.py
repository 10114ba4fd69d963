"""The chain in C++ on every instruction set: parity, draws, determinism, bf16, golden values."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import parity, schedules, testing
from ddvi_fast._operands import ChainOperands
from ddvi_fast.interop import denoiser_from_ddvi
from ddvi_fast.native import chain, loader
from tests.operands import call, chain_operands

CASES = {str(case): case for case in parity.cases("chain")}
# All sizes run on this processor's best instruction set in tests/ops; here one of each kind runs on all.
SOME = [name for name in CASES if name.startswith(("chain (0,", "chain (63, 2,", "chain (64, 5,", "chain (65,", "chain (2, 2, 64"))]


@pytest.mark.parametrize("name", SOME)
def test_values_and_gradients(isa, name):
    parity.check(CASES[name], "cpp")


@pytest.mark.parametrize("residual", [False, True])
def test_residual_does_not_follow_the_context(isa, residual):
    parity.check(parity.chain_case((19, 3, 2, 0 if residual else 2, 64, None), "drawn", residual), "cpp", upstream=("path",))


@pytest.mark.parametrize("samples, rows, groups", [((), 65, None), ((3,), 22, None), ((2, 5), 7, None), ((3,), 7, 2)])
def test_drawn_noise_is_the_given_noise(isa, samples, rows, groups):
    """Rows keep their draws however they are flattened, forward and backward; groups count as samples."""
    parity.check(parity.chain_case((rows, 3, 5, 2, 64, groups), "drawn", samples=samples), "cpp")


def test_the_trajectory_is_optional():
    assert chain.forward(chain_operands((5, 3, 2, 0, 64, 2)), False)[2] is None


def test_same_bits_twice_and_for_any_number_of_threads(isa, same_for_any_threads):
    operands = chain_operands((200, 3, 3, 2, 64, 2))
    same_for_any_threads(lambda: call(chain, operands))


@pytest.mark.parametrize(
    "case", [case for name, case in CASES.items() if name.startswith(("chain (0,", "chain (1, 5", "chain (65", "chain (257"))], ids=str
)
def test_bf16_stays_within_bf16_rounding(bf16_isa, case):
    """The reference rounds the same operands of the hidden products, so its error is the measure."""
    parity.check(case, "cpp", precision="bf16")


def test_bf16_is_not_float32(bf16_isa):
    found = [chain.forward(chain_operands((65, 4, 3, 2, 128, None), precision=precision), False)[0] for precision in ("float32", "bf16")]
    assert 1e-4 < (found[0] - found[1]).abs().max() < 0.1


def test_golden_trajectory(golden, isa):
    """The paper's conditional chain, eta = 0."""
    state = {name.removeprefix("cond/state/"): torch.tensor(golden[name]) for name in golden if name.startswith("cond/state/")}
    denoiser = denoiser_from_ddvi(state)
    start, context = torch.tensor(golden["cond/x_T"]), torch.tensor(golden["cond/context"])
    weights = [value.detach().contiguous() for value in denoiser.chain_weights()]
    expected, table = torch.tensor(golden["cond/trajectory"]), schedules.make("linear", 40).coefficients("eps", eta=0.0)
    operands = ChainOperands(start, context, *weights, table, None, None, None, None, 0, len(start), denoiser.residual, "float32")
    _, path, trajectory = chain.forward(operands, True)
    assert path is None
    testing.assert_close(trajectory, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), name="trajectory")


def test_unsupported_operands_are_named():
    assert loader.unusable(y_T=torch.zeros(1)) is None
    assert "denoiser: the C++ chain takes hidden widths that are multiples of 64, got 96" in chain.unsupported(hidden=torch.zeros(3, 96, 96))
