"""Tests of denoisers: layers written out in torch, groups, initial weights, errors."""

import math

import pytest
import torch

from ddvi_fast import InputError, rng
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close


def by_hand(denoiser, y, context, t, residual):
    linear = torch.nn.functional.linear
    first = (linear(torch.cat((y, context), -1), denoiser.first, denoiser.bias[0]) + denoiser.embedding[t, 0]).clamp(min=0)
    hidden = first
    for layer in range(3):
        hidden = (linear(hidden, denoiser.hidden[layer], denoiser.bias[layer + 1]) + denoiser.embedding[t, layer + 1]).clamp(min=0)
        if layer == 1 and residual:
            hidden = hidden + first
    return linear(hidden, denoiser.last, denoiser.last_bias)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_layers(residual, context_dim):
    denoiser = ResidualMLP(2, context_dim, 5, 16, residual=residual, draws=Draws(1)).double()
    y, context = (rng.normal(Draws(2), (7, width), 0, dtype=torch.float64) for width in (2, context_dim))
    t = torch.arange(7) % 5
    got = denoiser(y, context if context_dim else None, t)
    assert_close(got, by_hand(denoiser, y, context, t, residual), rtol=1e-12, atol=1e-14)


def test_skip_connection_goes_with_the_context():
    assert ResidualMLP(2, 3, 5).residual and not ResidualMLP(2, 0, 5).residual


def test_groups_and_leading_axes():
    grouped = ResidualMLP(2, 3, 5, 16, groups=4, draws=Draws(1)).double()
    y, context = (rng.normal(Draws(2), (4, 3, 7, width), 0, dtype=torch.float64) for width in (2, 3))
    t = rng.words(Draws(3), (4, 3, 7), 0) % 5
    together = grouped(y, context, t)
    for group in range(4):
        single = ResidualMLP(2, 3, 5, 16).double()
        single.load_state_dict({name: value[group] for name, value in grouped.state_dict().items()})
        assert_close(together[group], single(y[group], context[group], t[group]), rtol=1e-12, atol=1e-14)
    assert not torch.equal(grouped.first[0], grouped.first[1])


def test_every_weight_gets_a_gradient_and_empty_batches_work():
    denoiser = ResidualMLP(2, 3, 5, 16)
    t = torch.arange(5)
    denoiser(rng.normal(Draws(2), (5, 2), 0), rng.normal(Draws(2), (5, 3), 1), t).square().sum().backward()
    assert all(bool((weight.grad != 0).any()) for weight in denoiser.parameters())
    assert denoiser(torch.zeros(0, 2), torch.zeros(0, 3), t[:0]).shape == (0, 2)


def test_initial_weights():
    first, same, other = (ResidualMLP(4, 12, 50, 64, draws=Draws(seed)) for seed in (1, 1, 2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]) and not torch.equal(value, other.state_dict()[name])
    # The largest of many uniforms comes close to the bound and never passes it.
    for value, bound in [(first.first, 1 / 4), (first.hidden, 1 / 8), (first.last, 1 / 8), (first.bias, 1 / 8)]:
        assert 0.9 * bound < value.abs().max() <= bound
    assert first.embedding.min() >= 0 and 0.99 < first.embedding.max() <= 1
    zero = ResidualMLP(4, 0, 5, zero_output=True)
    assert (zero(torch.ones(3, 4), None, torch.zeros(3, dtype=torch.int64)) == 0).all()


@pytest.mark.parametrize("groups", [None, 3])
def test_embeddings_made_of_cosines(groups):
    smooth = ResidualMLP(2, 0, 40, 16, groups=groups, time_features=3, draws=Draws(1)).double()
    table = smooth.chain_weights().time_table - smooth.bias.unsqueeze(-3)
    assert_close(table, smooth.embedding[..., :1, :, :].expand_as(table), rtol=0, atol=1e-12)  # at first all steps are alike
    with torch.no_grad():
        smooth.embedding.copy_(rng.normal(Draws(2), tuple(smooth.embedding.shape), 0))
    table, angle = smooth.chain_weights().time_table - smooth.bias.unsqueeze(-3), torch.pi * (7 + 0.5) / 40
    constant, slow, fast = smooth.embedding.unbind(-3)
    assert_close(table[..., 7, :, :], constant + math.cos(angle) * slow + math.cos(2 * angle) * fast, rtol=1e-6, atol=1e-6)
    assert ResidualMLP(2, 0, 5, time_features=16).embedding.shape[0] == 5


@pytest.mark.parametrize("argument, value", [("latent_dim", 0), ("context_dim", -1), ("num_steps", 1), ("groups", 0), ("time_features", 0)])
def test_bad_sizes(argument, value, one_line):
    one_line(lambda: ResidualMLP(**({"latent_dim": 2, "context_dim": 0, "num_steps": 5} | {argument: value})), f"{argument}: expected .*at least")


def test_context_must_fit(one_line):
    with pytest.raises(InputError, match="context: expected None, for a denoiser without context"):
        ResidualMLP(2, 0, 5)(torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    one_line(lambda: ResidualMLP(2, 1, 5)(torch.zeros(1, 2), None, torch.zeros(1, dtype=torch.int64)), "context: expected a tensor, got None")


def test_gradients_have_the_same_bits_with_several_threads():
    denoiser, t = ResidualMLP(2, 3, 5, draws=Draws(1)), rng.words(Draws(2), (4096, 1), 0).squeeze(1) % 5
    y, context = (rng.normal(Draws(3), (4096, width), 0) for width in (2, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    runs = [torch.autograd.grad(denoiser(y, context, t).square().sum(), denoiser.embedding)[0] for _ in range(10)]
    torch.set_num_threads(before)
    assert all(torch.equal(run, runs[0]) for run in runs)
