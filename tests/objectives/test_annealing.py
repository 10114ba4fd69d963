"""Schedules of the KL weight. tests/test_golden.py compares the shapes of the released code value by value."""

from __future__ import annotations

import itertools

import pytest

from ddvi_fast import InputError
from ddvi_fast.objectives.annealing import KINDS, SILENT_EPOCHS, kl_weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hold", [0.0, 0.2])
def test_stays_in_range_and_ends_at_the_weight(kind, hold):
    values = [kl_weight(kind, epoch / 4, 30, 0.7, fraction=0.6, hold=hold) for epoch in range(120)]
    assert min(values) >= 0 and max(values) <= 0.7
    assert values[-1] == 0.7


def test_linear_ramp():
    assert [kl_weight("linear", epoch, 10, 2.0, fraction=0.5) for epoch in range(6)] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0])
    assert kl_weight("linear", 2.5, 10, 2.0, fraction=0.5) == pytest.approx(1.0)


def test_hold_then_ramp():
    assert [kl_weight("linear", epoch, 10, fraction=0.6, hold=0.2) for epoch in range(7)] == pytest.approx([1, 1, 0, 0.25, 0.5, 0.75, 1])


def test_cyclic_has_four_ramps():
    values = [kl_weight("cyclic", epoch, 100, fraction=0.8) for epoch in range(100)]
    assert sum(later < earlier for earlier, later in itertools.pairwise(values)) == 3
    assert values.count(0.0) == 4


def test_reverse_warmup_is_silent_first():
    assert [kl_weight("reverse_warmup", epoch, 100) for epoch in (0, SILENT_EPOCHS - 1, SILENT_EPOCHS)] == [0, 0, 1]


@pytest.mark.parametrize("options", [{"fraction": 1.1}, {"fraction": 0.2, "hold": 0.3}, {"hold": -0.1}])
def test_bad_input(options):
    with pytest.raises(InputError, match="hold, fraction: expected 0 <= hold < fraction <= 1"):
        kl_weight("linear", 0, 10, **options)
    with pytest.raises(InputError, match="did you mean cyclic"):
        kl_weight("cyclical", 0, 10)
