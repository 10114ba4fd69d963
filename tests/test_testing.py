"""Tests of comparison helpers: errors that they must report."""

import pytest
import torch

from ddvi_fast import testing


def test_error_budget_allows_twice_the_plain_error():
    exact = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    plain = exact + torch.tensor([0.0, 1e-3, 0.0], dtype=torch.float64)
    testing.assert_within_budget(exact + 1.9e-3, plain, exact)
    with pytest.raises(AssertionError, match=r"gradient: 3 of 3 elements differ"):
        testing.assert_within_budget(exact + 2.1e-3, plain, exact, name="gradient")


def test_failure_says_how_many_where_and_by_how_much():
    got = torch.zeros(4, 5)
    got[2, 3] = 0.5
    with pytest.raises(AssertionError, match=r"1 of 20 elements differ; the worst:\n  at \(2, 3\): got 0.5, expected 0, off by 0.5"):
        testing.assert_close(got, torch.zeros(4, 5), rtol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_values_never_pass(value):
    got = torch.tensor([1.0, value])
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        testing.assert_within_budget(got, torch.ones(2), torch.ones(2).double())
    with pytest.raises(AssertionError):
        testing.assert_within_budget(torch.ones(2), got, torch.ones(2).double())


def test_strided_keeps_values_and_gradients_are_random():
    value = torch.arange(6.0).reshape(2, 3)
    assert not testing.strided(value).is_contiguous() and torch.equal(testing.strided(value), value)
    output, gradient = testing.gradients(torch.square, value)
    assert torch.equal(output, value**2)
    assert torch.equal(gradient, 2 * value * testing.upstream_gradient(value))
    assert testing.upstream_gradient(value).unique().numel() == 6
