"""Standardization of columns: moments against NumPy, thresholds that follow the units, heavy tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddvi_fast.standardization import Columns, listed

ROWS = 4096


def normal(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed: int = 1) -> torch.Tensor:
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PLAIN = {
    "normal": normal(), "uniform": uniform(), "exponential": -uniform().log(), "log-normal": normal().exp(), "binary": (uniform() < 0.1).double(),
    "counts": (-uniform().log() / 3).floor(), "few": torch.tensor([1.0, 2.0, 2.5]).double(),
}  # fmt: skip
HEAVY = {
    "Cauchy": normal() / normal(2), "sinh": torch.sinh(10 * normal()), "one pixel": torch.eye(ROWS)[0].double(), "log-normal": (2 * normal()).exp()
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_numpy_in_float64(name: str, dtype: torch.dtype) -> None:
    x = (1000 + PLAIN[name]).to(dtype)
    found = Columns.of(x.unsqueeze(1))
    values = x.double().numpy()
    np.testing.assert_allclose(found.center, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.scale, values.std(), rtol=1e-9)
    assert found.varies.all() and not found.heavy.any()


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_tails_are_found_and_scaled_by_quartiles(name: str) -> None:
    found, moments = Columns.of(HEAVY[name].unsqueeze(1)), Columns.of(HEAVY[name].unsqueeze(1), robust=False)
    assert found.heavy.all() and moments.heavy.all()
    np.testing.assert_allclose(moments.scale, HEAVY[name].numpy().std(), rtol=1e-9)
    low, middle, high = np.quantile(HEAVY[name].numpy(), (0.25, 0.5, 0.75))
    if high > low:
        np.testing.assert_allclose(found.center, middle, atol=1e-2 * (high - low))
        np.testing.assert_allclose(found.scale, (high - low) / 1.349, rtol=1e-2)


def test_rare_values_are_no_outliers_and_one_far_among_them_is() -> None:
    rare = torch.zeros(ROWS, dtype=torch.float64)
    rare[::500] = torch.arange(1.0, 10.0, dtype=torch.float64)
    far = rare.clone()
    far[7] = 1e6
    found = Columns.of(torch.stack((rare, far, HEAVY["Cauchy"], PLAIN["normal"]), 1))
    assert found.heavy.tolist() == [True, True, True, False] and found.outlying.tolist() == [False, True, True, False]


@pytest.mark.parametrize("unit", [1e-300, 1e-30, 1e-9, 1.0, 1e9, 1e30, 1e300])
def test_a_change_of_units_changes_units_and_nothing_else(unit: float) -> None:
    x = torch.stack([*(column for name, column in PLAIN.items() if name != "few"), *HEAVY.values(), torch.full((ROWS,), 5.0)], 1).clamp(-1e6, 1e6)
    plain, other = Columns.of(x), Columns.of(x * unit)
    assert torch.equal(plain.varies, other.varies) and torch.equal(plain.heavy, other.heavy) and not plain.varies[-1]
    torch.testing.assert_close(other(x * unit)[:, :-1], plain(x)[:, :-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("value", [0, 5, -7, 10_000])
def test_constant_columns_do_not_vary_in_any_type(dtype: torch.dtype, value: int) -> None:
    found = Columns.of(torch.full((50, 2), value, dtype=dtype))
    assert not found.varies.any() and not found.heavy.any()
    assert found.center.tolist() == [value, value] and found.scale.tolist() == [1.0, 1.0]


def test_rounding_is_no_spread_and_a_small_spread_is() -> None:
    huge, jitter = torch.full((100,), 1e30), 0.1 * torch.arange(100).remainder(3) + 3e7
    slow = 1e6 + torch.arange(100.0)
    assert Columns.of(torch.stack((huge, jitter, slow), 1)).varies.tolist() == [False, False, True]
    assert Columns.of((1e6 + 1e-3 * normal()).unsqueeze(1)).varies.all()


def test_messages_list_some_columns() -> None:
    flags = torch.zeros(30, dtype=torch.bool)
    flags[[3, 5]] = True
    assert listed(flags) == "columns 3, 5" and listed(flags, [f"z[{i}]" for i in range(30)]) == "z[3], z[5]"
    assert listed(~flags) == "columns 0, 1, 2, 4, 6, 7, 8, 9 and 20 others"
