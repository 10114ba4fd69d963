"""The sleep term's regression in C++ against the reference in float64: values, every gradient, awkward shapes, determinism, bf16."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast._checks import InputError
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.native import sleep
from ddvi_fast.reference import sleep as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

GRADIENTS = ("d_x0", "d_context", *(f"d_{name}" for name in ChainWeights._fields), "d_table", "d_noise")

# N, T, D, C, H, G: every size of the contract at least once, small sizes with large ones.
SHAPES = [
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, None),
    (63, 2, 3, 7, 128, 3),
    (64, 5, 5, 64, 64, None),
    (65, 100, 16, 1, 128, 1),
    (257, 40, 33, 2, 64, 3),
    (17, 2, 64, 0, 256, None),
    (1000, 20, 2, 2, 64, None),
    (9, 5, 2, 0, 64, 10),
]


def _case(rows, steps, latent, context_width, hidden, groups):
    """Inputs in the order of the gradients, the steps, and the denoiser's kind. Steps repeat, and the last is always among them."""
    denoiser = ResidualMLP(latent, context_width, steps, hidden, groups=groups)
    lead = () if groups is None else (groups,)
    x0, noise = (rng.normal(Draws(seed), (*lead, rows, latent), 0) for seed in (1, 3))
    context = rng.normal(Draws(2), (*lead, rows, context_width), 0) if context_width else None
    weights = [value.detach() for value in denoiser.chain_weights()]
    table = rng.normal(Draws(4), (steps, 5), 0)
    t = (rng.uniform(Draws(5), (*lead, rows, 1), rng.TIME)[..., 0] * steps).long()
    t[..., -1:] = steps - 1
    return [x0, context, *weights, table, noise], t, denoiser.residual


def _reference(inputs, t, loss, residual, dtype):
    leaves = [None if value is None else value.to(dtype).clone().requires_grad_() for value in inputs]
    x0, context, *weights, table, noise = leaves
    value = reference.denoising_loss(x0, t, context, ChainWeights(*weights), table, noise, loss, residual)
    upstream = testing.upstream_gradient(value.float()).to(dtype)
    found = iter(torch.autograd.grad(value, [leaf for leaf in leaves if leaf is not None], upstream))
    return dict(zip(("loss", *GRADIENTS), (value, *(None if leaf is None else next(found) for leaf in leaves)), strict=True))


def _kernel(inputs, t, loss, residual, precision="float32", noise=None, state=None, offset=0, rows_per_sample=1, needed=(True,) * 9):
    """Loss and gradients; drawn noise where a state is given."""
    x0, context, *weights, table, handed = inputs
    arguments = (x0, t, context, *weights, table, handed if state is None else None, state, offset, rows_per_sample, loss, residual, precision)
    value = sleep.forward(*arguments)
    needed = [*needed[:8], needed[8] and state is None]
    gradients = sleep.backward(*arguments, testing.upstream_gradient(value), needed)
    return dict(zip(("loss", *GRADIENTS), (value, *gradients), strict=True))


def _compare(got, plain, exact, **options):
    for name, value in got.items():
        if value is not None:
            testing.assert_within_budget(value, plain[name], exact[name], name=name, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(isa, shape, poison_empty):
    inputs, t, residual = _case(*shape)
    plain, exact = (_reference(inputs, t, "squared", residual, dtype) for dtype in (torch.float32, torch.float64))
    got = _kernel(inputs, t, "squared", residual)
    assert [name for name, value in got.items() if value is None] == ["d_context"] * (shape[3] == 0)
    _compare(got, plain, exact)


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
@pytest.mark.parametrize("residual", [False, True])
def test_losses(isa, loss, residual):
    inputs, t, _ = _case(77, 5, 3, 2, 64, None)
    plain, exact = (_reference(inputs, t, loss, residual, dtype) for dtype in (torch.float32, torch.float64))
    _compare(_kernel(inputs, t, loss, residual), plain, exact)


def test_an_exact_prediction_has_neither_loss_nor_gradient(isa):
    """The kink of |e| at zero counts as flat, as in torch."""
    inputs, t, residual = _case(5, 3, 2, 0, 64, None)
    inputs[4], inputs[5], inputs[7] = torch.zeros_like(inputs[4]), torch.zeros_like(inputs[5]), inputs[7] * torch.tensor([1.0, 1, 0, 0, 1])
    for name, value in _kernel(inputs, t, "absolute", residual).items():
        assert value is None or not value.any(), name


@pytest.mark.parametrize("shape", [(65,), (3, 22), (2, 5, 7)])
def test_drawn_noise_is_the_handed_noise(isa, shape):
    """Rows keep their draws however they were flattened, with seeds of 64 bits and an offset."""
    rows = torch.Size(shape).numel()
    inputs, t, residual = _case(rows, 3, 5, 2, 64, None)
    seed = (1 << 63) + 11
    inputs[8] = rng.normal(Draws(seed, 12), (*shape, 5), rng.NOISE).reshape(rows, 5)
    plain, exact = (_reference(inputs, t, "huber", residual, dtype) for dtype in (torch.float32, torch.float64))
    state = torch.tensor([seed - (1 << 64), 7])
    _compare(_kernel(inputs, t, "huber", residual, state=state, offset=5, rows_per_sample=shape[-1]), plain, exact)


def test_grouped_draws_count_groups_as_samples(isa):
    inputs, t, residual = _case(21, 3, 2, 0, 64, 2)
    inputs[8] = rng.normal(Draws(4), (2, 3, 7, 2), rng.NOISE).reshape(2, 21, 2)
    plain, exact = (_reference(inputs, t, "squared", residual, dtype) for dtype in (torch.float32, torch.float64))
    _compare(_kernel(inputs, t, "squared", residual, state=torch.tensor([4, 0]), rows_per_sample=7), plain, exact)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_same_bits_twice_and_for_any_number_of_threads(isa, threads, precision):
    inputs, t, residual = _case(200, 3, 3, 2, 64, 2)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(_kernel(inputs, t, "huber", residual, precision))
    for name, value in results[0].items():
        assert all(torch.equal(value, other[name]) for other in results[1:]), name


@pytest.mark.parametrize("position", range(9))
def test_only_what_is_needed(position):
    inputs, t, residual = _case(40, 3, 3, 2, 64, None)
    every = _kernel(inputs, t, "squared", residual)
    got = _kernel(inputs, t, "squared", residual, needed=[index == position for index in range(9)])
    assert [name for name, value in got.items() if value is not None] == ["loss", GRADIENTS[position]]
    assert torch.equal(got[GRADIENTS[position]], every[GRADIENTS[position]])


@pytest.mark.parametrize("shape", [(1, 2, 1, 0, 64, None), (65, 4, 3, 2, 128, None), (127, 2, 16, 7, 64, 2)], ids=str)
def test_bf16_stays_within_bf16_rounding(shape, bf16_isa):
    """Weights and activations lose 8 bits each; a wrong pairing of neighbours would be off by the size of the values."""
    inputs, t, residual = _case(*shape)
    exact = _reference(inputs, t, "squared", residual, torch.float64)
    got = _kernel(inputs, t, "squared", residual, "bf16")
    found = [(value.double() - exact[name].detach(), exact[name].detach()) for name, value in got.items() if value is not None]
    errors = [float(off.norm() / truth.norm()) for off, truth in found]
    assert max(errors) < 0.06, errors
    assert max(errors) > 1e-5, "float32 products: bf16 was not used"


def test_a_step_that_does_not_exist_is_named():
    inputs, t, residual = _case(40, 3, 3, 2, 64, None)
    for wrong in (-1, 3):
        t[7] = wrong
        with pytest.raises(InputError, match=rf"^t: expected steps in \[0, 3\), got {wrong}$"):
            _kernel(inputs, t, "squared", residual)


def test_unsupported_says_why():
    wide, double = torch.zeros(3, 96, 96), torch.zeros(2, dtype=torch.float64)
    assert sleep.unsupported(hidden=torch.zeros(3, 64, 64)) is None
    assert "multiples of 64, got 96" in sleep.unsupported(hidden=wide)
    assert "float32 and bf16, got tf32" in sleep.unsupported("tf32")
    assert "x0: the C++ kernels are float32, got float64" in sleep.unsupported(x0=double)
