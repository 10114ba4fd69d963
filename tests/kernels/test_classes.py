"""Rows of drawn classes in Triton against plain indexing."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.kernels import classes
from ddvi_fast.parity import normals
from ddvi_fast.rng import Draws

pytestmark = pytest.mark.usefixtures("poison_empty")


@pytest.mark.parametrize("widths", [(2, 2, 32), (3, 1), (5,)], ids=str)
@pytest.mark.parametrize("shape", [(4, 37), (19,), (1, 1), (2, 0)], ids=str)
def test_values_and_gradients(widths, shape):
    """The parts are views of one output of an encoder, class by class beside each other."""
    count, rows = 7, shape[-1]
    labels = rng.integers(Draws(3), shape if len(shape) == 2 else shape[0], count, rng.CLASSES)
    output = normals(0, rows, count * sum(widths)).requires_grad_()
    parts = output.unflatten(1, (count, -1)).movedim(1, 0).split(widths, -1)
    expected = [part[labels, torch.arange(rows)] for part in parts]
    plain = [part.detach() for part in parts]
    got = classes.forward(labels, plain)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    upstream = [normals(1 + i, *value.shape) for i, value in enumerate(expected)]
    wanted = torch.autograd.grad(expected, parts, upstream)
    for one, other in zip(classes.backward(upstream, labels, plain), wanted, strict=True):
        testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    missing = [None, *upstream[1:]]
    if len(widths) > 1:
        found = classes.backward(missing, labels, plain)
        assert found[0] is None
        testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=1e-6)


def test_rows_of_a_class_that_does_not_exist_are_nan():
    (got,) = classes.forward(torch.tensor([0, 2, -1]), [torch.ones(2, 3, 4)])
    assert got.isnan().all(1).tolist() == [False, True, True]
