"""Distances between samples against closed forms for Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import InputError
from ddvi_fast.inference.compare import c2st, mmd, moment_errors, standardized


def normal(shift: float, seed: int, count: int = 1500) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)) + torch.tensor([shift, 0.0])


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_the_classifier_comes_near_the_best_accuracy_there_is(shift: float) -> None:
    best = 0.5 * (1 + math.erf(shift / 2 / math.sqrt(2)))  # of two normals `shift` apart
    assert abs(c2st(normal(shift, 0), normal(0.0, 1)) - best) < 0.04


def test_moment_errors_are_in_units_of_the_reference() -> None:
    reference = 5 + 2 * normal(0.0, 2)
    shifted = (reference - reference.mean(0)) * torch.tensor([1.0, 1.5]) + reference.mean(0) + reference.std(0) * torch.tensor([-0.3, 0.1])
    assert moment_errors(shifted, reference) == pytest.approx((0.3, 0.5), abs=1e-5)


def test_mmd_is_that_of_its_formula() -> None:
    samples, reference = normal(0.7, 3, 60), normal(0.0, 4, 50)
    x, y = standardized(samples, reference)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sum(torch.exp(-(torch.cdist(a, b) ** 2) / (2 * s)) for s in (0.01, 0.1, 1.0, 10.0)).mean()

    assert mmd(samples, reference) == pytest.approx(float((kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).sqrt()), rel=1e-4)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(InputError, match=r"samples: expected samples \[N, 2\]"):
        mmd(torch.zeros(9, 3), torch.zeros(9, 2))
    with pytest.raises(InputError, match="at least 5 rows"):
        c2st(normal(0.0, 0, 3), normal(0.0, 1))
