"""Importance samples against closed forms of Gaussian proposals."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import InputError
from ddvi_fast.inference import ImportanceSample

COUNT, WIDE = 50_000, 1.5


def gaussian() -> ImportanceSample:
    """An unnormalised standard normal of mass e^3, by draws of a wider one."""
    x = WIDE * torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ImportanceSample.of(x, 3 + torch.log(torch.tensor(WIDE)) - 0.5 * x[:, 0] ** 2 * (1 - 1 / WIDE**2))


def test_evidence_size_and_moments_are_those_of_theory() -> None:
    sample = gaussian()
    share = math.sqrt(2 * WIDE**2 - 1) / WIDE**2  # (E w)^2 / E w^2
    error = math.sqrt((1 / share - 1) / COUNT)
    assert abs(sample.log_evidence - 3) < 4 * error
    assert abs(sample.effective_sample_size / COUNT - share) < 0.01
    assert sample.pareto_k < 0.5 and "(reliable)" in repr(sample)
    assert abs(float(sample.mean(sample.z[:, 0] ** 2)) - 1) < 4 * math.sqrt(3 / (share * COUNT))
    assert abs(sample.elbo - (3 + math.log(WIDE) - 0.5 * (WIDE**2 - 1))) < 0.02


def test_resampled_draws_follow_the_target() -> None:
    draws = gaussian().resample(20_000, seed=3)
    assert draws.shape == (20_000, 1)
    assert abs(float(draws.mean())) < 0.04 and abs(float(draws.var()) - 1) < 0.06
    named = ImportanceSample.of({"a": torch.arange(200.0), "b": torch.zeros(200, 2)}, torch.where(torch.arange(200) < 100, 0.0, -math.inf))
    chosen = named.resample(100)
    # The weights of the first hundred are alike: a systematic draw takes each of them once.
    assert torch.equal(chosen["a"].sort().values, torch.arange(100.0)) and chosen["b"].shape == (100, 2)


def test_a_proposal_that_is_too_narrow_is_found_out() -> None:
    x = 0.3 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    sample = ImportanceSample.of(x, 0.5 * x**2 * (1 / 0.3**2 - 1))
    assert sample.pareto_k > 0.7 and "heavy tail" in repr(sample)


def test_bad_weights_are_named() -> None:
    with pytest.raises(InputError, match="num_samples: expected at least 100"):
        ImportanceSample.of(torch.zeros(50), torch.zeros(50))
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="log_joint"):
            ImportanceSample.of(torch.zeros(200), torch.full((200,), bad))


def test_weights_that_rounding_rules_are_told() -> None:
    ratios = torch.randn(200, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="log_joint: rounded to 12 nats, too coarse for weights"):
        ImportanceSample.of(torch.zeros(200), ratios + 1e8)
    ImportanceSample.of(torch.zeros(200), ratios.double() + 1e8)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_averages_take_values_of_any_type(kind: torch.dtype) -> None:
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    sample = ImportanceSample.of(z, 0.3 * z[:, 0])
    weights = sample.log_weights.double().exp()
    positive = float(weights[z[:, 0] > 0].sum())
    found = sample.mean((z > 0).to(kind))
    assert found.dtype == (torch.float64 if kind is torch.float64 else torch.float32)
    assert 0.5 < positive < 1 and abs(float(found[0]) - positive) < 1e-5


def test_averages_of_complex_values_keep_both_parts() -> None:
    z = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    sample = ImportanceSample.of(z, torch.zeros(200))
    torch.testing.assert_close(sample.mean(torch.complex(z, 2 * z)), torch.complex(z.mean(0), 2 * z.mean(0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("values", "words"), [(torch.ones(3), "shape"), (torch.tensor(1.0), "shape"), ([1.0] * 200, "a tensor")])
def test_averages_of_other_rows_are_refused(values: object, words: str) -> None:
    with pytest.raises(InputError, match=f"values: expected {words}"):
        ImportanceSample.of(torch.zeros(200, 1), torch.zeros(200)).mean(values)
