"""Calls like an earlier one skip checks: they get what a first call gets, and whatever a check looks at makes a call unlike."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, _backend, _signature, ops, schedules, use_backend
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops import chain
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close
from tests.operands import draw_normals

ROWS, DIM, WIDTH, STEPS = 5, 2, 3, 4
SCHEDULE = schedules.make("cosine", STEPS)
TABLE = SCHEDULE.coefficients("v")
DENOISER = ResidualMLP(DIM, WIDTH, STEPS, 64, draws=Draws(1))
Y, CONTEXT = draw_normals(ROWS, DIM), draw_normals(ROWS, WIDTH, seed=1)
STEPS_OF_ROWS = torch.arange(ROWS) % STEPS


def sample(y=Y, context=CONTEXT, denoiser=DENOISER, table=TABLE, **options):
    return ops.sample_chain(y, context, denoiser, table, **{"draws": Draws(2), **options}).z


def lose(x0=Y, context=CONTEXT, denoiser=DENOISER, t=STEPS_OF_ROWS, schedule=SCHEDULE, **options):
    return ops.denoising_loss(x0, t, context, denoiser, schedule, **{"draws": Draws(2), **options})


@pytest.fixture
def backends(monkeypatch):
    """The fused backends that ran, in order."""
    ran, implementation = [], _backend.implementation
    monkeypatch.setattr(_backend, "implementation", lambda backend, operation: (ran.append(backend), implementation(backend, operation))[1])
    return ran


@pytest.mark.parametrize("call", [sample, lose])
def test_a_second_call_skips_the_checks_and_has_the_same_result(call, monkeypatch):
    first = call()
    monkeypatch.setattr(_backend, "choose", None)
    monkeypatch.setattr(chain, "check_latents", None)
    assert torch.equal(call(), first)


@pytest.mark.parametrize("call", [sample, lose])
def test_another_choice_of_backend_is_heard(call, backends, monkeypatch):
    fused = call()
    assert backends == ["cpp"] * len(backends) != []
    backends.clear()
    with use_backend("reference"):
        plain = call()
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "reference")
    assert torch.equal(call(), plain) and not [name for name in backends if name != "cpp"]
    assert_close(fused, plain, rtol=1e-5)


@pytest.mark.parametrize("call", [sample, lose])
def test_another_type_has_another_backend(call):
    narrow, wide = call(), call(Y.double(), CONTEXT.double(), ResidualMLP(DIM, WIDTH, STEPS, 64, draws=Draws(1)).double())
    assert wide.dtype == torch.float64
    assert_close(narrow, wide.float(), rtol=1e-5)


@pytest.mark.parametrize("call", [sample, lose])
def test_other_strides_have_the_same_result(call):
    assert torch.equal(call(), call(Y.T.contiguous().T, CONTEXT.T.contiguous().T))


@pytest.mark.parametrize("call", [sample, lose])
def test_what_autocast_allows_is_refused_without_it(call):
    narrow = Y.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(call(narrow, precision="float32"), call(narrow.float(), precision="float32"), rtol=1e-2)
    with pytest.raises(InputError, match="expected a float32 tensor"):
        call(narrow, precision="float32")


@pytest.mark.parametrize("call", [sample, lose])
def test_the_precision_of_autocast_is_heard(call):
    plain = call()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = call()
    assert torch.equal(rounded, call(precision="bf16")) and not torch.equal(rounded, plain)


REFUSED = {
    "one row more of context": {"context": CONTEXT[:4]},
    "no context": {"context": None},
    "other latents": {"y": draw_normals(ROWS, DIM + 1)},
    "one axis": {"y": Y[0]},
    "sparse": {"y": Y.to_sparse()},
    "integers": {"y": Y.long()},
    "a list": {"y": Y.tolist()},
    "context of a list": {"context": CONTEXT.tolist()},
    "another device": {"context": CONTEXT.to("meta")},
    "a shorter table": {"table": TABLE[:3]},
    "a denoiser of more steps": {"denoiser": ResidualMLP(DIM, WIDTH, STEPS + 1, 64)},
    "no denoiser": {"denoiser": torch.nn.Linear(2, 2)},
    "an unknown precision": {"precision": "half"},
    "a precision that cannot be hashed": {"precision": ["bf16"]},
    "deterministic": {"table": SCHEDULE.coefficients("v", 0.0)},
    "a flag of one": {"return_trajectory": 1},
    "groups": {"groups": torch.zeros(ROWS, dtype=torch.int64)},
    "no noise": {"draws": None},
    "noise of another shape": {"draws": None, "noise": draw_normals(STEPS, ROWS, DIM + 1)},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_stays_refused(changes):
    with pytest.raises(InputError) as alone:
        sample(**changes)
    sample(), sample(return_trajectory=True)
    for _ in range(2):
        with pytest.raises(InputError) as later:
            sample(**changes)
        assert str(later.value) == str(alone.value)


LOST = [
    ("loss", "hubert"), ("loss", ["huber"]), ("parametrisation", "w"), ("t", STEPS_OF_ROWS + 1), ("t", STEPS_OF_ROWS.float()),
    ("t", STEPS_OF_ROWS[:3]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), LOST)
def test_a_refused_regression_stays_refused(name, value):
    lose()
    for _ in range(2):
        with pytest.raises(InputError, match=f"^{name}: "):
            lose(**{name: value})


def test_groups_are_read_at_every_call():
    denoiser = ResidualMLP(DIM, WIDTH, STEPS, 64, groups=2)
    for _ in range(2):
        sample(denoiser=denoiser, groups=torch.tensor([0, 1, 0, 1, 1]))
        with pytest.raises(InputError, match="groups in"):
            sample(denoiser=denoiser, groups=torch.tensor([0, 1, 0, 1, 2]))


def test_only_calls_of_plain_tensors_are_remembered(monkeypatch):
    class Other(torch.Tensor):
        pass

    assert _signature.signature("chain", (Y, None)) is not None
    assert _signature.signature("chain", (Y.as_subclass(Other), None)) is None
    assert _signature.signature("chain", (Y, [1.0])) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert _signature.signature("chain", (Y, None)) is None


def test_memory_is_bounded():
    for rows in range(1, 2 * _signature._MOST):
        _signature.remember(_signature.signature("chain", (torch.empty(rows, 1, device="meta"),)), "reference")
        assert 1 <= len(_signature._backends) <= _signature._MOST
