"""Dense layers in C++ against the reference in float64: values, gradients, dropout, determinism, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import ddvi_fast
from ddvi_fast import dense, networks, rng, testing
from ddvi_fast._operands import DenseOptions
from ddvi_fast.native import dense as native
from ddvi_fast.rng import Draws

# R, K, M: no rows, single ones, one below and above every block size, more rows than a run holds.
SHAPES = ((0, 3, 2), (1, 1, 1), (3, 2, 49), (63, 31, 48), (64, 33, 47), (65, 100, 13), (130, 16, 97), (1025, 50, 5), (128, 784, 100))
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")


def _layer(inputs, outputs):
    return networks.linear(inputs, outputs, Draws(1), 0)


def _results(linear, x, dtype=torch.float32, backend="cpp", **options):
    """Output and gradients of x, weight and bias."""
    parameters = [parameter.detach() for parameter in linear.parameters()]

    def function(x, weight, bias):
        return dense.dense(_Given(weight, bias), x, **options)

    with ddvi_fast.use_backend(backend):
        return testing.gradients(function, *(value.to(dtype) for value in (x, *parameters)))


class _Given(nn.Module):
    """A linear layer of given tensors."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def _compare(linear, x, floor=2e-6, **options):
    plain = _results(linear, x, backend="reference", **options)
    found = (_results(linear, x, **options), plain, _results(linear, x, torch.float64, "reference", **options))
    for name, got, plain, exact in zip(("out", "d_x", "d_weight", "d_bias"), *found, strict=True):
        testing.assert_within_budget(got, plain, exact, floor=floor, name=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(isa, shape, activation, poison_empty):
    rows, inputs, outputs = shape
    _compare(_layer(inputs, outputs), rng.normal(Draws(3), (rows, inputs), 0), activation=activation)


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_is_that_of_the_reference(isa, activation, rate):
    linear, x = _layer(20, 51), rng.normal(Draws(3), (3, 70, 20), 0)
    options = {"activation": activation, "rate": rate, "draws": Draws((1 << 63) + 5, (1 << 33) - 7), "layer": 3}
    _compare(linear, x, **options)
    kept = _results(linear, x, **options)[0] != 0
    assert torch.equal(kept, _results(linear, x, backend="reference", **options)[0] != 0), "the same values are dropped, not only the same number"


@pytest.mark.parametrize("layout", [testing.strided, lambda x: x[:1].expand_as(x), lambda x: x.mT.contiguous().mT])
def test_layouts(layout):
    _compare(_layer(20, 51), layout(rng.normal(Draws(3), (70, 20), 0)), activation="leaky_relu")


def test_any_number_of_threads_gives_the_same_bits(isa, same_for_any_threads):
    linear, x = _layer(100, 200), rng.normal(Draws(3), (300, 100), 0)
    options = {"activation": "leaky_relu", "rate": 0.4, "draws": Draws(1), "layer": 0}
    same_for_any_threads(lambda: _results(linear, x, **options), (1, 2, 5))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_rounds_operands_alone(shape, poison_empty, bf16_isa):
    """Against the product of rounded operands in float64, with the processor's bf16 products and with emulated ones."""
    rows, inputs, outputs = shape
    linear, x = _layer(inputs, outputs), rng.normal(Draws(3), (rows, inputs), 0)
    with torch.autocast("cpu", torch.bfloat16):
        got = _results(linear, x)
    assert all(value.dtype == torch.float32 for value in got)
    narrow = _layer(inputs, outputs)
    narrow.weight.data = narrow.weight.data.bfloat16().float()
    rounded = _results(narrow, x.bfloat16().float(), torch.float64, "reference")
    plain = _results(linear, x, torch.float64, "reference")
    testing.assert_close(got[0], rounded[0], rtol=1e-5, atol=1e-5)
    for value, exact in zip(got, plain, strict=True):
        assert (value - exact).norm() <= 2**-7 * exact.norm()


def test_second_derivatives(isa):
    linear, x = _layer(12, 19), rng.normal(Draws(3), (7, 12), 0)

    def results(dtype, backend):
        leaves = [value.detach().to(dtype).requires_grad_() for value in (x, linear.weight, linear.bias)]
        with ddvi_fast.use_backend(backend):
            out = dense.dense(_Given(*leaves[1:]), leaves[0], "leaky_relu", 0.3, Draws(1), 0)
            first = torch.autograd.grad(torch.tanh(out).square().sum(), leaves, create_graph=True)
            return [*first, *torch.autograd.grad(sum(value.square().sum() for value in first), leaves)]

    found = (results(torch.float32, "cpp"), results(torch.float32, "reference"), results(torch.float64, "reference"))
    for got, plain, exact in zip(*found, strict=True):
        testing.assert_within_budget(got, plain, exact, floor=2e-6)


def test_only_what_is_needed_is_computed():
    x, weight, out = torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 5)
    found = native.backward(out, x, weight, out, DenseOptions(1.0, "float32"), (False, True, False))
    assert [value is None for value in found] == [True, False, True]


def test_what_the_kernel_cannot_take_is_plain_pytorch():
    linear, x = _layer(4, 3), rng.normal(Draws(3), (5, 4), 0)
    assert dense._fused_precision(linear, x) == "float32"
    assert dense._fused_precision(linear.double(), x.double()) is None
    with torch.autocast("cpu", torch.float16):
        assert dense._fused_precision(linear.float(), x) is None


def test_shapes_alone_need_no_kernel():
    with FakeTensorMode() as mode:
        linear = nn.Linear(4, 3)
        out = dense.dense(linear, torch.empty(5, 4, requires_grad=True), "relu")
        out.sum().backward()
    assert out.shape == (5, 3) and out.fake_mode is mode
