"""Tests of the one form of message: argument, expected, got."""

import pytest
import torch

from ddvi_fast import InputError, _checks


def test_form(one_line):
    assert one_line(lambda: _checks.fail("eta", "a number", 2, "try 1")) == "eta: expected a number, got 2 (try 1)"
    assert one_line(lambda: _checks.require(False, "eta", "a number", None)) == "eta: expected a number, got None"
    assert _checks.require(True, "eta", "a number", None) is None
    assert issubclass(InputError, ValueError)


def test_choice_names_the_nearest(one_line):
    assert _checks.choice("linear", ("linear", "cosine"), "schedule") == "linear"
    one_line(lambda: _checks.choice("linaer", ("linear", "cosine"), "schedule"), "did you mean linear")
    assert "did you mean" not in one_line(lambda: _checks.choice("zzz", ("linear", "cosine"), "schedule"))
    one_line(lambda: _checks.choice(3, ("linear", "cosine"), "schedule"), "one of linear, cosine")


def test_tensor(one_line):
    value = torch.zeros(2, 3)
    assert _checks.tensor(value, "x", (None, 3)) is value
    assert one_line(lambda: _checks.tensor(value, "x", (None, 4))) == "x: expected shape [any, 4], got a float32 tensor of shape [2, 3] on cpu"
    one_line(lambda: _checks.tensor(value, "x", (2,)), r"shape \[2\]")
    one_line(lambda: _checks.tensor([1], "x"), r"a tensor, got \[1\]")
    one_line(lambda: _checks.tensor(torch.zeros(2, dtype=torch.int64), "x"), "a floating-point tensor, got a int64")
    assert _checks.tensor(torch.zeros(2, dtype=torch.int64), "x", floating=False).shape == (2,)


def test_same_device(one_line):
    _checks.same_device("x", torch.zeros(2), torch.zeros(3))
    one_line(lambda: _checks.same_device("x", torch.zeros(2), torch.zeros(3, device="meta")), "x: expected a tensor on meta")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finite_says_where(bad, one_line):
    value = torch.zeros(3, 4)
    assert _checks.finite(value, "x") is value
    value[1, 2] = value[2, 0] = bad
    one_line(lambda: _checks.finite(value, "x"), rf"{bad} at index \(1, 2\), 2 such values")
