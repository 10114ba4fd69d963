"""Tests of encoders and decoders: outputs, initial weights, dropout, batch normalization."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import networks, rng
from ddvi_fast.networks import MLP, ConvDecoder, ConvEncoder, SigmoidVariances
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close


@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
def test_layers(activation):
    nn = torch.nn
    functional = {"none": nn.Identity(), "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "silu": nn.SiLU(), "tanh": nn.Tanh()}[activation]
    mlp, x = MLP(6, [8, 5], 3, activation=activation), rng.normal(Draws(1), (4, 6), 0)
    first, second, third = mlp.layers
    assert_close(mlp(x), nn.Sequential(first, functional, second, functional, third)(x), rtol=1e-5, atol=1e-6)


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


def test_bad_input(one_line):
    one_line(lambda: MLP(6, [8], 3, activation="rulu"), r"activation.*did you mean relu")
    one_line(lambda: MLP(6, [8], 3, dropout=1), r"dropout: expected a rate in \[0, 1\), got 1")


def images(n: int, seed: int = 3):
    return rng.uniform(Draws(seed), (n, 3 * 32 * 32), 0).view(n, 3, 32, 32)


def sizes(network, hidden):
    """Shapes after each convolution, without the batch."""
    return [(hidden := convolution(hidden)).shape[1:] for convolution in network.convolutions]


def test_convolutions_have_the_released_sizes():
    encoder, decoder = ConvEncoder(4, [50]), ConvDecoder(2)
    assert sizes(encoder, images(2)) == [(16, 30, 30), (32, 14, 14), (64, 5, 5), (128, 1, 1)]
    assert sizes(decoder, torch.zeros(2, 64, 1, 1)) == [(64, 5, 5), (32, 13, 13), (16, 29, 29), (3, 32, 32)]
    assert encoder(images(2)).shape == encoder(images(2).flatten(1)).shape == (2, 4)
    z = rng.normal(Draws(1), (3, 5, 2), 0)
    torch.testing.assert_close(decoder(z)[1], decoder(z[1]))
    assert decoder(torch.zeros(0, 2)).shape == (0, 3072)


def test_batch_normalisation_is_torchs():
    ours, theirs, x = networks.BatchNorm(3), torch.nn.BatchNorm2d(3), images(6)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_fantasies_and_evaluation_leave_the_statistics_of_data_alone():
    encoder, data, fantasies = ConvEncoder(4, [10]), images(8), images(8, seed=4) * 0.1
    encoder(data)
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    with networks.fixed_statistics(encoder):
        held = encoder(fantasies)
    encoder.eval()
    torch.testing.assert_close(held, encoder(fantasies), msg="fantasies are encoded as data will be in use")
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    encoder.train()
    encoder(fantasies)
    assert not any(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_convolutions_start_from_the_seed_at_a_steady_scale():
    one, same, other = (ConvDecoder(2, draws=Draws(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(*(net.parameters() for net in (one, same, other)), strict=True))
    weight = ConvEncoder(4).convolutions[2].weight
    assert weight.abs().max().item() == pytest.approx(1 / (32 * 25) ** 0.5, rel=1e-3)


def test_variances_below_one():
    encoder, x = MLP(6, [8], 4), 50 * rng.normal(Draws(1), (40, 6), 0)
    mean, log_var = SigmoidVariances(encoder, 2)(x).chunk(2, 1)
    plain = encoder(x)
    assert torch.equal(mean, plain[:, :2]) and (log_var < 0).all() and torch.isfinite(log_var).all()
    torch.testing.assert_close(log_var.exp(), torch.sigmoid(plain[:, 2:]))
    assert torch.equal(SigmoidVariances(encoder, 1)(x)[:, 2:], plain[:, 2:])
