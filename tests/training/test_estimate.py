"""Tests of the dry run: its parameters, memory and steps are those of the run, and nothing is written."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddvi_fast.training import estimate

SMALL = ["epochs=3", "limit=256", "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[32]"]


@pytest.mark.parametrize("method", ["vae", "ddvi", "aae", "wae"])
def test_parameters_are_all_counted_once(built, method: str) -> None:
    experiment = built(*SMALL, f"method={method}")
    counts = estimate.parameters(experiment)
    everything = nn.ModuleList([experiment.model, experiment.posterior, *(phase.objective for phase in experiment.phases)])
    assert counts["all"] == sum(parameter.numel() for parameter in everything.parameters()) == sum(counts.values()) / 2
    assert counts["model"] == 2 * 32 + 32 + 32 * 64 + 64


def test_saved_memory_is_that_of_the_tensors_that_autograd_needs() -> None:
    class Product(nn.Module):
        weight = nn.Parameter(torch.ones(5, 7))

        def updates(self, x, progress, draws):
            def total() -> torch.Tensor:
                hidden = torch.exp(x @ self.weight)  # exp keeps its result [11, 7]
                return (hidden * hidden).sum()  # and so does the product: the same storage

            return [SimpleNamespace(terms=lambda: SimpleNamespace(total=total))]

    assert estimate.saved_for_backward(Product(), torch.ones(11, 5)) == 11 * 7 * 4


def test_a_dry_run_tells_and_writes_nothing(shell, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = shell("train", "--dry-run", "method=ddvi", *SMALL)
    assert not list(tmp_path.iterdir())
    for word in ("posterior.family", "activations", "train: 6 steps", "about", "runs/digits-ddvi-pinwheel-seed0"):
        assert word in told
    assert json.loads(told[: told.index("\nrun folder")])["epochs"] == 3


def test_a_dry_run_refuses_what_the_run_refuses(shell) -> None:
    assert "batch_size" in shell("train", "--dry-run", "recipe.batch_size=0", code=2)
