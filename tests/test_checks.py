"""Tests of the one form of message: argument, expected, got."""

import fractions

import numpy as np
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


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_python_and_numpy_become_pythons(value):
    got = _checks.integer(value, "steps", 1)
    assert got == 3 and type(got) is int


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, np.float64(3), "3", None, (3,), torch.tensor(3), float("nan")])
def test_what_is_no_integer(value, one_line):
    one_line(lambda: _checks.integer(value, "steps"), r"steps: expected an integer, got")


def test_ranges_of_integers(one_line):
    assert _checks.integer(-3, "offset") == -3 and _checks.integer(7, "offset", 0, 8) == 7
    assert one_line(lambda: _checks.integer(0, "steps", 1)) == "steps: expected an integer of at least 1, got 0"
    assert one_line(lambda: _checks.integer(8, "groups", 0, 8)) == "groups: expected an integer in [0, 8), got 8"
    assert one_line(lambda: _checks.integer(np.int64(-1), "seed", 0, 1 << 64)) == "seed: expected an integer in [0, 2^64), got -1"


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), fractions.Fraction(1, 2)])
def test_numbers_of_python_and_numpy_become_pythons(value):
    got = _checks.number(value, "lr", above=0)
    assert got == 0.5 and type(got) is float
    assert type(_checks.number(np.int64(2), "lr")) in (int, float)


@pytest.mark.parametrize("value", [True, np.bool_(False), "1", None, 1j, [1.0], torch.tensor(1.0), float("nan"), float("inf"), np.float32("nan")])
def test_what_is_no_finite_number(value, one_line):
    one_line(lambda: _checks.number(value, "lr"), "lr: expected a finite number, got")


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        (0, {"above": 0}, "a number above 0"),
        (-1, {"at_least": 0}, "a number of at least 0"),
        (1, {"below": 1}, "a number below 1"),
        (2, {"at_most": 1}, "a number of at most 1"),
        (1, {"at_least": 0, "below": 1}, r"a number in \[0, 1\)"),
        (0, {"above": 0, "at_most": 1}, r"a number in \(0, 1\]"),
    ],
)
def test_ranges_of_numbers(value, limits, expected, one_line):
    one_line(lambda: _checks.number(value, "rate", **limits), f"rate: expected {expected}, got {value}$")


def test_sequences_of_integers(one_line):
    for value in ([8, 4], (8, 4), np.array([8, 4])):
        got = _checks.integers(value, "hidden", 1)
        assert got == (8, 4) and {type(width) for width in got} == {int}
    assert _checks.integers((), "hidden", 1) == ()
    for value in (8, "88", None, {8: 1}):
        one_line(lambda value=value: _checks.integers(value, "hidden", 1), "hidden: expected a sequence of integers of at least 1, got")
    assert one_line(lambda: _checks.integers((8, 0), "hidden", 1)) == "hidden[1]: expected an integer of at least 1, got 0"


def test_flags(one_line):
    assert _checks.flag(True, "overwrite") is True and _checks.flag(np.bool_(False), "overwrite") is False
    for value in (1, 0, None, "true", torch.tensor(True)):
        one_line(lambda value=value: _checks.flag(value, "overwrite"), "overwrite: expected True or False, got")


def test_devices(one_line):
    assert _checks.device("cpu") == torch.device("cpu") == _checks.device(torch.device("cpu"))
    for value in ("gpu", "", None, 1.5, ["cpu"]):
        one_line(lambda value=value: _checks.device(value), "device: expected a device, as cpu, cuda or cuda:0, got")
    one_line(lambda: _checks.device("cuda:63"), "device: expected a device of this machine, got 'cuda:63'")
    one_line(lambda: _checks.device("meta"), "device: expected a device with memory, got 'meta'")


def test_what_was_given_is_described_in_one_short_line(one_line):
    describe = lambda value: one_line(lambda: _checks.fail("x", "a number", value)).removeprefix("x: expected a number, got ")  # noqa: E731
    assert describe(np.zeros((2, 3))) == "a float64 array of shape [2, 3]"
    assert describe(torch.nn.Identity()) == "a module of class Identity"
    assert describe(np.int64(2)) == "2" and describe("") == "''" and describe("a b") == "a b"
    assert len(describe(list(range(10000)))) == 200


def test_choices_are_text(one_line):
    for value in (np.array(["linear", "cosine"]), torch.zeros(2), None, ["linear"]):
        one_line(lambda value=value: _checks.choice(value, ("linear", "cosine"), "schedule"), "schedule: expected one of linear, cosine")
