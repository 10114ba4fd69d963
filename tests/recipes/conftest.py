"""Fixtures for tests of recipes."""

from collections.abc import Callable

import pytest
import torch

from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.rng import Draws


@pytest.fixture
def finite_updates() -> Callable[..., list]:
    """``finite_updates(objective, rows=4)``: the updates for that many random images; the loss of each is finite."""

    def check(objective: Objective, rows: int = 4) -> list:
        x = torch.rand(rows, 8, 8, generator=torch.Generator().manual_seed(0))
        updates = list(objective.updates(x, Progress(1, 2), Draws(0)))
        assert all(update.terms().total().isfinite() for update in updates)
        return updates

    return check
