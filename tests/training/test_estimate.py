"""Tests of the dry run: its parameters, memory and steps are those of the run, and nothing is written."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ddvi_fast import cli
from ddvi_fast.config.compose import compose
from ddvi_fast.recipes.build import build
from ddvi_fast.training import estimate
from ddvi_fast.training.run import load_dataset

SMALL = ["epochs=3", "limit=256", "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[32]"]


@pytest.mark.parametrize("method", ["vae", "ddvi", "aae", "wae"])
def test_parameters_are_all_counted_once(method: str) -> None:
    config = compose([*SMALL, f"method={method}"])
    experiment = build(config, load_dataset(config))
    counts = estimate.parameters(experiment)
    everything = nn.ModuleList([experiment.model, experiment.posterior, *(phase.objective for phase in experiment.phases)])
    assert counts["all"] == sum(parameter.numel() for parameter in everything.parameters()) == sum(counts.values()) / 2
    assert counts["model"] == 2 * 32 + 32 + 32 * 64 + 64


class _Update:
    def __init__(self, value: torch.Tensor) -> None:
        self._value = value

    def terms(self) -> _Update:
        return self

    def total(self) -> torch.Tensor:
        return self._value


def test_saved_memory_is_that_of_the_tensors_that_autograd_needs() -> None:
    class Product(nn.Module):
        weight = nn.Parameter(torch.ones(5, 7))

        def updates(self, x, progress, draws):
            class Lazy(_Update):
                def total(inner) -> torch.Tensor:
                    hidden = torch.exp(x @ self.weight)  # exp keeps its result [11, 7]
                    return (hidden * hidden).sum()  # and so does the product: the same storage

            return [Lazy(x)]

    assert estimate.saved_for_backward(Product(), torch.ones(11, 5)) == 11 * 7 * 4


def test_a_dry_run_tells_and_writes_nothing(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry-run", "method=ddvi", *SMALL]) == 0
    told = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for word in ("posterior.denoiser", "activations", "train: 6 steps", "about", "runs/digits-ddvi-pinwheel-seed0"):
        assert word in told
    assert json.loads(told[: told.index("\nrun folder")])["epochs"] == 3


def test_a_dry_run_refuses_what_the_run_refuses(capsys) -> None:
    assert cli.main(["train", "--dry-run", "recipe.batch_size=0"]) == 2
    assert "batch_size" in capsys.readouterr().err
