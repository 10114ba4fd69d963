"""The sleep term's regression in Triton against the reference in float64: values, every gradient, awkward shapes, several pieces."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.kernels import sleep, sleep_backward
from ddvi_fast.reference import sleep as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRADIENTS = ("d_x0", "d_context", *(f"d_{name}" for name in ChainWeights._fields), "d_table", "d_noise")

# N, T, D, C, H, G
SHAPES = [
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, None),
    (33, 2, 3, 7, 64, 2),
    (65, 100, 5, 1, 64, 1),
    (17, 5, 16, 64, 128, None),
    (3, 2, 33, 2, 256, None),
    (9, 5, 64, 0, 64, 2),
]

pytestmark = pytest.mark.usefixtures("poison_empty")


def _case(rows, steps, latent, context_width, hidden, groups):
    """Inputs in the order of the gradients, the steps, and the denoiser's kind."""
    denoiser = ResidualMLP(latent, context_width, steps, hidden, groups=groups)
    lead = () if groups is None else (groups,)
    x0, noise = (rng.normal(Draws(seed), (*lead, rows, latent), 0) for seed in (1, 3))
    context = rng.normal(Draws(2), (*lead, rows, context_width), 0) if context_width else None
    weights = [value.detach() for value in denoiser.chain_weights()]
    t = (rng.uniform(Draws(5), (*lead, rows, 1), rng.TIME)[..., 0] * steps).long()
    inputs = [x0, context, *weights, rng.normal(Draws(4), (steps, 5), 0), noise]
    return [None if value is None else value.to(DEVICE) for value in inputs], t.to(DEVICE), denoiser.residual


def _reference(inputs, t, loss, residual, dtype):
    leaves = [None if value is None else value.to(dtype).clone().requires_grad_() for value in inputs]
    x0, context, *weights, table, noise = leaves
    value = reference.denoising_loss(x0, t, context, ChainWeights(*weights), table, noise, loss, residual)
    upstream = testing.upstream_gradient(value.float()).to(dtype)
    found = iter(torch.autograd.grad(value, [leaf for leaf in leaves if leaf is not None], upstream))
    return dict(zip(("loss", *GRADIENTS), (value, *(None if leaf is None else next(found) for leaf in leaves)), strict=True))


def _kernel(inputs, t, loss, residual, precision="float32", state=None, offset=0, rows_per_sample=1, needed=(True,) * 9):
    """Loss and gradients; drawn noise where a state is given."""
    x0, context, *weights, table, handed = inputs
    arguments = (x0, t, context, *weights, table, handed if state is None else None, state, offset, rows_per_sample, loss, residual, precision)
    value = sleep.forward(*arguments)
    gradients = sleep.backward(*arguments, testing.upstream_gradient(value), [*needed[:8], needed[8] and state is None])
    return dict(zip(("loss", *GRADIENTS), (value, *gradients), strict=True))


def _agree(got, inputs, t, loss, residual):
    plain, exact = (_reference(inputs, t, loss, residual, dtype) for dtype in (torch.float32, torch.float64))
    for name, value in got.items():
        if value is not None:
            # Products of tf32 triples are good to about 2^-22.
            testing.assert_within_budget(value, plain[name], exact[name], floor=4e-6, name=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape):
    inputs, t, residual = _case(*shape)
    got = _kernel(inputs, t, "squared", residual)
    assert [name for name, value in got.items() if value is None] == ["d_context"] * (shape[3] == 0)
    _agree(got, inputs, t, "squared", residual)


@pytest.mark.parametrize("loss", ["absolute", "huber"])
@pytest.mark.parametrize("residual", [False, True])
def test_losses(loss, residual):
    inputs, t, _ = _case(21, 5, 3, 2, 64, None)
    _agree(_kernel(inputs, t, loss, residual), inputs, t, loss, residual)


@pytest.mark.parametrize("groups", [None, 2])
def test_drawn_noise_is_the_handed_noise(groups):
    """Rows keep their draws however they were flattened, with seeds of 64 bits and an offset."""
    shape, seed = (2, 3, 7), (1 << 63) + 11
    rows = 42 if groups is None else 21
    inputs, t, residual = _case(rows, 3, 5, 2, 64, groups)
    inputs[8] = rng.normal(Draws(seed, 12), (*shape, 5), rng.NOISE).to(DEVICE).reshape(inputs[0].shape)
    state = torch.tensor([seed - (1 << 64), 7], device=DEVICE)
    _agree(_kernel(inputs, t, "huber", residual, state=state, offset=5, rows_per_sample=7), inputs, t, "huber", residual)


def test_pieces_tiles_and_slices_add_up(monkeypatch):
    """Scratch for one tile at a time, one program for all tiles of a forward pass."""
    monkeypatch.setattr(sleep_backward, "SCRATCH_BYTES", 1)
    monkeypatch.setattr(sleep, "_PROGRAMS", 1)
    inputs, t, residual = _case(100, 70, 2, 2, 64, None)
    _agree(_kernel(inputs, t, "squared", residual), inputs, t, "squared", residual)


@pytest.mark.parametrize("position", [0, 1, 3, 7, 8])
def test_only_what_is_needed(position):
    inputs, t, residual = _case(9, 3, 3, 2, 64, None)
    every = _kernel(inputs, t, "squared", residual)
    got = _kernel(inputs, t, "squared", residual, needed=[index == position for index in range(9)])
    assert [name for name, value in got.items() if value is not None] == ["loss", GRADIENTS[position]]
    assert torch.equal(got[GRADIENTS[position]], every[GRADIENTS[position]])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_within_its_rounding(precision):
    inputs, t, residual = _case(40, 4, 3, 2, 64, 2)
    exact = _reference(inputs, t, "squared", residual, torch.float64)
    got = _kernel(inputs, t, "squared", residual, precision)
    found = [(value.double() - exact[name].detach(), exact[name].detach()) for name, value in got.items() if value is not None]
    errors = [float(off.norm() / truth.norm()) for off, truth in found]
    assert 1e-5 < max(errors) < (0.06 if precision == "bf16" else 0.01), errors


def test_a_step_that_does_not_exist_shows():
    inputs, t, residual = _case(40, 3, 3, 2, 64, None)
    t[7], t[9] = -1, 3
    value = _kernel(inputs, t, "squared", residual)["loss"]
    assert value.isnan().nonzero().flatten().tolist() == [7, 9]


def test_unsupported_says_why():
    odd = torch.zeros(3, 96, 96, device=DEVICE)
    assert sleep.unsupported(hidden=torch.zeros(3, 64, 64, device=DEVICE)) is None
    assert "hidden widths 64, 128, 256, got 96" in sleep.unsupported(hidden=odd)
    assert "got int8" in sleep.unsupported("int8")
    assert "at most 64 columns, got 65" in sleep.unsupported(x0=torch.zeros(2, 65, device=DEVICE))
