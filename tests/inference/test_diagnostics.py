"""Calibration: exact posteriors pass; those that are too narrow, too wide, shifted or wrongly correlated fail."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import InputError
from ddvi_fast.inference import Diagnostics

M, L = 1000, 199


def diagnose(deviation: float = 1.0, shift: float = 0.0, correlation: float = 0.0) -> Diagnostics:
    """Truths that are standard normal around their data, draws that have another spread, place or correlation."""
    generator = torch.Generator().manual_seed(0)
    data = 3 * torch.randn(M, 2, generator=generator)
    truth, noise = data + torch.randn(M, 2, generator=generator), torch.randn(L, M, 2, generator=generator)
    second = correlation * noise[..., :1] + math.sqrt(1 - correlation**2) * noise[..., 1:]
    return Diagnostics.of(truth, data + shift + deviation * torch.cat((noise[..., :1], second), -1), ["a", "b"])


def test_the_exact_posterior_is_calibrated() -> None:
    diagnostics = diagnose()
    assert diagnostics.calibrated(errors=4) and min(diagnostics.p_values().values()) > 1e-3
    assert [diagnostics.nominal(level) for level in (0.5, 0.8, 0.9)] == pytest.approx([0.5, 0.8, 0.9])
    assert diagnostics.standard_error(0.5) == pytest.approx(math.sqrt(0.25 / M))


def test_coverage_of_a_wrong_spread_is_that_of_the_normal_distribution() -> None:
    for deviation in (0.6, 1.6):
        diagnostics = diagnose(deviation)
        for level in (0.5, 0.9):
            reach = deviation * math.sqrt(2) * torch.erfinv(torch.tensor(level))
            expected = float(torch.erf(reach / math.sqrt(2)))
            assert (
                abs(diagnostics.coverage(level)["a"] - expected) < 4 * math.sqrt(expected * (1 - expected) / M) + 0.005
            )  # and the grain of quantiles
        assert not diagnostics.calibrated()


def test_a_shift_is_found_in_the_ranks() -> None:
    diagnostics = diagnose(shift=0.5)
    assert diagnostics.p_values()["a"] < 1e-6 and not diagnostics.calibrated()
    assert float(diagnostics.ranks[:, 0].float().mean()) < L / 2 - 20


def test_a_wrong_correlation_is_found_by_the_joint_ranks_alone() -> None:
    diagnostics = diagnose(correlation=0.95)
    p_values = diagnostics.p_values()
    assert p_values["joint"] < 1e-4 < min(p_values["a"], p_values["b"])


def test_what_is_printed_has_every_name_and_level() -> None:
    text = repr(diagnose())
    assert all(word in text for word in ("50%, 80%, 90%", "a:", "b:", "joint:", f"{M} truths"))


def test_bad_shapes_are_named() -> None:
    with pytest.raises(InputError, match="draws: expected shape"):
        Diagnostics.of(torch.zeros(5, 2), torch.zeros(9, 5, 3), ["a", "b"])
    with pytest.raises(InputError, match="truth: expected at least 2"):
        Diagnostics.of(torch.zeros(1, 2), torch.zeros(9, 1, 2), ["a", "b"])
