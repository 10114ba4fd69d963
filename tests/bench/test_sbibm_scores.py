"""The study of sbi on sbibm: its simulations are those of our posteriors, and our figures stand beside its own."""

from __future__ import annotations

import torch

from bench import records
from bench.studies import sbibm_scores
from ddvi_fast.inference import Architecture, Model, Training, fit_posterior
from ddvi_fast.paper.sbibm_tasks import TASKS
from ddvi_fast.rng import Draws


def test_the_simulations_are_those_of_our_posteriors() -> None:
    task, seen, calls = TASKS["two_moons"](), [], []

    def simulate(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(task.simulate(n))
        return seen[-1]

    architecture = Architecture(num_steps=4, width=8, ensemble=1)
    fit_posterior(Model(simulate=simulate), support=task.support, num_simulations=40, seed=3, training=Training(steps=2), architecture=architecture)
    u, x = sbibm_scores.simulations(task, 40, 3, calls).all(40, Draws(3))
    ours = max(seen, key=lambda found: len(found[0]))
    torch.testing.assert_close(u, torch.special.logit((ours[0] + 1) / 2), atol=1e-4, rtol=1e-4)
    assert torch.equal(x, ours[1]) and calls == [40]


def test_our_figures_are_means_over_the_same_observations(tmp_path, monkeypatch) -> None:
    ours = {"task": "slcp", "budget": 100, "seed": 0, "simulated": 100, "seconds": 1.0, "commit": "c", "processor": "p", "torch": "t"}
    made = {"kind": "ddvi_fast.paper.sbibm_table", "command": "c", "cells": [{**ours, "c2st": {"1": 0.7, "2": 0.8, "3": 0.3}}]}
    records.write(tmp_path / "sbibm" / "table.json", made)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    cell = {**ours, "method": "fmpe", "sbi": "1.2", "c2st": {"1": 0.9, "2": 0.6}}
    beside, alone = sbibm_scores.markdown({"cells": [cell, {**cell, "task": "two_moons", "method": "npse"}]}).splitlines()[-1:-3:-1]
    assert beside == "| slcp | FMPE (sbi) | 100 | 0.750 | 0.600 | 0.900 | 2 | 0.750 | 1 |"
    assert alone.startswith("| two_moons | NPSE (sbi) | 100 | 0.750 |") and alone.endswith("|  | 1 |")
