"""Tests of the table of posteriors of own models: means over seeds, and calibration against a computation by hand."""

from __future__ import annotations

import math

import torch

from bench.studies import own_models
from ddvi_fast.inference.diagnostics import Diagnostics


def made_up(seed: int, c2st: float) -> dict:
    coverage = {level: {"z[0]": 0.1, "joint": float(level) + 0.01 * seed} for level in ("0.5", "0.8", "0.9")}
    figures = {"c2st": c2st, "mmd": 0.1, "mean_error": 0.2, "deviation_error": 0.3, "coverage": coverage, "coverage_error": 2.0, "seconds": 60.0}
    head = {"example": "two_moons", "method": "diffusion", "seed": seed, "commit": "0123456789abcdef", "processor": "some processor"}
    return {**head, **figures, "effective": 0.5, "pareto_k": 0.4}


def test_a_row_is_the_mean_over_seeds() -> None:
    text = own_models.markdown({"cells": [made_up(0, 0.50), made_up(2, 0.54)]})
    assert "| two moons | diffusion | 0.520 ± 0.028 | 0.100 | 0.200 | 0.300 | 0.510 / 0.810 / 0.910 | 2.0 | 50% | 0.40 | 60 |" in text
    assert text.count("| two moons") == 1 and "Commit 0123456789, some processor, one thread." in text


def test_posteriors_without_weights_leave_their_columns_empty() -> None:
    cell = {name: value for name, value in made_up(0, 0.5).items() if name not in ("effective", "pareto_k")}
    assert "| 2.0 |  |  | 60 |" in own_models.markdown({"cells": [{**cell, "method": "npse"}]})


def test_the_worst_coverage_is_in_standard_errors() -> None:
    # 400 truths of which all lie in the middle half of the draws.
    diagnostics = Diagnostics(["a", "joint"], torch.tensor([[50, 20]]).expand(400, 2), 99)
    figures = own_models._calibration(diagnostics)
    assert figures["coverage"]["0.5"] == {"a": 1.0, "joint": 1.0}
    assert math.isclose(figures["coverage_error"], 0.5 / math.sqrt(0.25 / 400))
