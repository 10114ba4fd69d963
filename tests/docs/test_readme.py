"""Tests of the README's Python code: each block runs by itself and gives what its comments say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(block, str(README), "exec"), names)
    return names


def test_the_coin_has_its_beta_posterior() -> None:
    assert abs(float(run(BLOCKS[0])["posterior"].sample(4000).mean()) - 8 / 12) < 0.05


def test_the_estimator_maps_digits_to_two_latents() -> None:
    assert run(BLOCKS[1])["latents"].shape == (1797, 2)


def test_the_model_gets_gradients_and_importance_weights() -> None:
    names = run(BLOCKS[2])
    assert all(parameter.grad is not None for parameter in names["objective"].parameters())
    assert names["z"].shape == (5, 256, 2) and names["log_prior_ratio"].shape == (5, 256)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_readme_is_short(number: int) -> None:
    assert len(BLOCKS) == 3 and len(BLOCKS[number].splitlines()) <= 16
