"""Noising, the bound's reductions, kernel density and discrepancy in C++ on every instruction set: parity, equal bits."""

from __future__ import annotations

import pytest

from ddvi_fast import parity
from ddvi_fast.parity import normals


@pytest.mark.parametrize("case", [case for operation in ("noise", "elbo", "kde", "mmd") for case in parity.cases(operation)], ids=str)
def test_values_and_gradients(isa, case):
    parity.check(case, "cpp")


@pytest.mark.parametrize("case", [parity.kde_case(normals(1, 50, 2), normals(2, 700, 2), (0.1, 1.0), 7.0), parity.mmd_case(300, 250, 5)], ids=str)
def test_same_bits_for_any_number_of_threads(isa, same_for_any_threads, case):
    same_for_any_threads(lambda: parity.run(case, "cpp"))
