"""The one form of message: argument, expected, got."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, _checks


def message(call):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_form():
    assert message(lambda: _checks.fail("eta", "a number", 2, "try 1")) == "eta: expected a number, got 2 (try 1)"
    assert message(lambda: _checks.require(False, "eta", "a number", None)) == "eta: expected a number, got None"
    assert _checks.require(True, "eta", "a number", None) is None
    assert issubclass(InputError, ValueError)


def test_choice_names_the_nearest():
    assert _checks.choice("linear", ("linear", "cosine"), "schedule") == "linear"
    assert message(lambda: _checks.choice("linaer", ("linear", "cosine"), "schedule")).count("did you mean linear")
    assert "did you mean" not in message(lambda: _checks.choice("zzz", ("linear", "cosine"), "schedule"))
    assert "one of linear, cosine" in message(lambda: _checks.choice(3, ("linear", "cosine"), "schedule"))


def test_tensor():
    value = torch.zeros(2, 3)
    assert _checks.tensor(value, "x", (None, 3)) is value
    assert message(lambda: _checks.tensor(value, "x", (None, 4))) == "x: expected shape [any, 4], got a float32 tensor of shape [2, 3] on cpu"
    assert "shape [2]" in message(lambda: _checks.tensor(value, "x", (2,)))
    assert "a tensor, got [1]" in message(lambda: _checks.tensor([1], "x"))
    assert "a floating-point tensor, got a int64" in message(lambda: _checks.tensor(torch.zeros(2, dtype=torch.int64), "x"))
    assert _checks.tensor(torch.zeros(2, dtype=torch.int64), "x", floating=False).shape == (2,)


def test_same_device():
    _checks.same_device("x", torch.zeros(2), torch.zeros(3))
    assert "x: expected a tensor on meta" in message(lambda: _checks.same_device("x", torch.zeros(2), torch.zeros(3, device="meta")))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finite_says_where(bad):
    value = torch.zeros(3, 4)
    assert _checks.finite(value, "x") is value
    value[1, 2] = value[2, 0] = bad
    text = message(lambda: _checks.finite(value, "x"))
    assert f"{bad} at index (1, 2), 2 such values" in text
