"""Precision of the operations: autocast rounds hidden products only, and a backend refuses a precision that it lacks."""

from __future__ import annotations

import pytest
import torch

import ddvi_fast
from ddvi_fast import InputError, _backend, denoisers, ops, parity, precision, schedules
from ddvi_fast.rng import Draws
from tests.operands import BACKENDS as FUSED
from tests.operands import draw_normals as normals

BACKENDS = ["reference", *FUSED]
CPU_BACKENDS = [name for name in BACKENDS if name != "triton"]
INTERPRETED = "triton" in BACKENDS and _backend.interpreted()
CPU = torch.device("cpu")
TABLE = schedules.make("cosine", 3).coefficients("v")
DENOISER = denoisers.ResidualMLP(2, 2, 3, hidden_dim=64, draws=Draws(1))


def chain(**options):
    return ops.sample_chain(normals(9, 2), normals(9, 2, seed=1), DENOISER, TABLE, draws=Draws(2), **options).path


def loss(**options):
    t = torch.arange(9) % 3
    return ops.denoising_loss(normals(9, 2), t, normals(9, 2, seed=1), DENOISER, schedules.make("cosine", 3), draws=Draws(2), **options)


def test_autocast_decides_where_nothing_is_asked():
    assert precision.hidden_precision(None, CPU) == "float32"
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        with torch.autocast("cpu", dtype):
            assert precision.hidden_precision(None, CPU) == name
            assert precision.hidden_precision("float32", CPU) == "float32"
            with torch.autocast("cpu", enabled=False):
                assert precision.hidden_precision(None, CPU) == "float32"
    with pytest.raises(InputError, match=r"precision: expected one of float32, tf32, bf16, fp16, got 'half'"):
        precision.hidden_precision("half", CPU)


@pytest.mark.parametrize("call", [chain, loss])
@pytest.mark.parametrize(
    ("backend", "name", "dtype"), [(name, "bf16", torch.bfloat16) for name in CPU_BACKENDS] + [("triton", "fp16", torch.float16)]
)
def test_autocast_is_the_precision_asked_for(backend, name, dtype, call):
    if backend == "triton" and not INTERPRETED:
        pytest.skip("needs Triton's interpreter")
    with ddvi_fast.use_backend(backend), torch.no_grad():
        full, asked = call(), call(precision=name)
        with torch.autocast("cpu", dtype):
            under, kept = call(), call(precision="float32")
    assert under.dtype == torch.float32
    assert torch.equal(under, asked) and torch.equal(kept, full)
    error = float((asked - full).abs().max() / full.abs().max())
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "triton"])
@pytest.mark.parametrize("operation", ["chain", "sleep"])
@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32"])
def test_triton_rounds_as_the_reference_does(backend, operation, name):
    if name == "bf16" and INTERPRETED:
        with pytest.raises(InputError, match=r"precision: Triton's interpreter has no bf16"):
            parity.check(parity.cases(operation, small=True)[-1], backend, precision=name)
        return
    parity.check(parity.cases(operation, small=True)[-1], backend, "cuda" if torch.cuda.is_available() else "cpu", precision=name)


def test_what_the_kernels_lack_is_refused_by_name_and_left_to_the_reference_under_auto():
    if "cpp" not in BACKENDS:
        pytest.skip(_backend.unavailable("cpp"))
    for call in (chain, loss):
        with ddvi_fast.use_backend("cpp"), pytest.raises(InputError, match=r"precision: .*got fp16"):
            call(precision="fp16")
        with ddvi_fast.use_backend("reference"):
            expected = call(precision="fp16")
        torch.testing.assert_close(call(precision="fp16"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("call", [chain, loss])
def test_tf32_needs_a_device_that_has_it(call):
    with pytest.raises(InputError, match=r"precision: expected .*tf32"):
        call(precision="tf32")


def test_operands_that_autocast_made_narrow_are_widened():
    logits, x = normals(4, 5).bfloat16().requires_grad_(), torch.sigmoid(normals(4, 5, seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = torch.nn.functional.linear(normals(4, 5), normals(5, 5))
        assert narrow.dtype == torch.bfloat16
        value = ops.bernoulli_log_likelihood(logits, x)
        density = ops.kde_log_density(narrow, normals(6, 5), [1.0])
        distance = ops.mmd(narrow, normals(6, 5), [1.0])
        assert ops.gaussian_kl(narrow, narrow).dtype == density.dtype == distance.dtype == value.dtype == torch.float32
    torch.testing.assert_close(value, ops.bernoulli_log_likelihood(logits.detach().float(), x))
    torch.testing.assert_close(distance, ops.mmd(narrow.float(), normals(6, 5), [1.0]))
    assert torch.autograd.grad(value.sum(), logits)[0].dtype == torch.bfloat16


def test_the_reference_computes_in_full_precision_under_autocast():
    """Its distances are matrix products, which autocast would round."""
    x, y = normals(30, 5), normals(20, 5, seed=1)
    with ddvi_fast.use_backend("reference"):
        expected = ops.mmd(x, y, [1.0])
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(ops.mmd(x, y, [1.0]), expected)
