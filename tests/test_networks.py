"""Encoders and decoders: what they compute, how they start, how they drop."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, networks, rng
from ddvi_fast.networks import MLP
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close


@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
def test_layers(activation):
    functional = {"relu": torch.nn.ReLU(), "leaky_relu": torch.nn.LeakyReLU(0.2), "silu": torch.nn.SiLU(), "tanh": torch.nn.Tanh()}[activation]
    mlp, x = MLP(6, [8, 5], 3, activation=activation), rng.normal(Draws(1), (4, 6), 0)
    expected = x
    for index, layer in enumerate(mlp.layers):
        expected = expected @ layer.weight.T + layer.bias
        expected = functional(expected) if index < 2 else expected
    assert_close(mlp(x), expected, rtol=1e-5, atol=1e-6)


def test_shapes():
    mlp = MLP(6, [], 3)
    assert mlp(torch.zeros(4, 2, 3)).shape == (4, 3)
    assert mlp(torch.zeros(5, 4, 6)).shape == (5, 4, 3)
    assert mlp(torch.zeros(0, 6)).shape == (0, 3)


def test_initial_weights():
    first, same, other = (MLP(16, [64], 4, draws=Draws(seed)) for seed in (1, 1, 2))
    for one, two, three in zip(first.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) and not torch.equal(one, three)
    weight = first.layers[0].weight
    assert 0.95 / 4 < weight.abs().max() <= 1 / 4
    assert weight.var().item() == pytest.approx(1 / 48, rel=0.1)
    assert (MLP(16, [64], 4, zero_output=True)(torch.ones(2, 16)) == 0).all()


def test_dropout():
    x, rate = torch.ones(2000, 50), 0.3
    dropped = networks.dropout(x, rate, Draws(1), 0)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs((dropped == 0).double().mean() - rate) < 4 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert torch.equal(dropped[500:], networks.dropout(x[500:], rate, Draws(1, 500), 0)), "the rows decide, not the batch"
    assert not torch.equal(dropped, networks.dropout(x, rate, Draws(1), 1)), "layers drop differently"
    assert networks.dropout(x, rate, None, 0) is x


def test_evaluation_drops_nothing():
    mlp, x = MLP(6, [32], 3, dropout=0.5), rng.normal(Draws(1), (4, 6), 0)
    assert torch.equal(mlp(x), mlp(x))
    assert not torch.equal(mlp(x), mlp(x, Draws(1)))
    assert torch.equal(mlp(x, Draws(1)), mlp(x, Draws(1)))


def test_bad_input():
    with pytest.raises(InputError, match=r"activation.*did you mean relu"):
        MLP(6, [8], 3, activation="rulu")
    with pytest.raises(InputError, match=r"dropout: expected a rate in \[0, 1\), got 1"):
        MLP(6, [8], 3, dropout=1)
