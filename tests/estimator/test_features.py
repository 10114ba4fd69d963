"""Features of the estimator: columns without spread, units, heavy tails."""

from __future__ import annotations

import numpy as np
import pytest

from ddvi_fast import DDVI, InputError

SMALL = {"epochs": 2, "hidden": (8,), "num_steps": 2, "n_samples": 2}


def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 4)) * [1, 10, 0.1, 1] + [0, 5, 0, -3]


def test_constant_columns_are_left_out_and_named(tmp_path) -> None:
    x = rows()
    with_constants = np.insert(x, [0, 2], (1e30, 5.0), axis=1)
    with pytest.warns(UserWarning, match="columns 0, 3 without spread"):
        fitted = DDVI(**SMALL).fit(with_constants)
    plain = DDVI(**SMALL).fit(x)
    # They change nothing.
    np.testing.assert_array_equal(fitted.transform(with_constants), plain.transform(x))
    np.testing.assert_array_equal(fitted.score_samples(with_constants), plain.score_samples(x))
    assert (fitted.sample(3)[:, [0, 3]] == (1e30, 5.0)).all()
    changed = with_constants.copy()
    changed[4, 3] = 5.001
    again = DDVI.load(fitted.save(tmp_path / "kept"))
    with pytest.warns(UserWarning, match="column 3 did not vary in the fit"):
        np.testing.assert_array_equal(again.transform(changed), plain.transform(x))


def test_units_change_units_only() -> None:
    x = rows()
    unit = 2.0**-50
    np.testing.assert_array_equal(DDVI(**SMALL).fit_transform(x * unit), DDVI(**SMALL).fit_transform(x))


def test_a_few_values_that_rule_a_column_are_told() -> None:
    x = rows()
    x[0, 1] = 1e6
    with pytest.warns(UserWarning, match="a few values rule the standard deviation of column 1"):
        DDVI(**SMALL).fit(x)


def test_a_matrix_of_constants_is_refused() -> None:
    with pytest.raises(InputError, match="X: expected columns that vary"):
        DDVI(**SMALL).fit(np.full((20, 3), 7.0))
