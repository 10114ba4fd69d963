"""Tests of the model of a step on many GPUs, and of the counts of collectives."""

from __future__ import annotations

import pytest
import torch

from bench.baselines.training import Sizes
from bench.studies import scaling
from bench.training import step_flops


def rows(batch: str) -> dict[int, dict]:
    return {row["GPUs"]: row for row in scaling.model(44e6, 8) if row["batch"] == batch}


def test_one_gpu_exchanges_nothing():
    for batch in ("128 in all", "128 a GPU", "8192 a GPU"):
        alone = rows(batch)[1]
        assert alone["exchange, us"] == 0 and alone["times one GPU"] == 1


def test_parts_of_a_step_by_hand():
    row = rows("128 a GPU")[64]
    assert row["compute, us"] == pytest.approx(1e6 * 128 * step_flops(Sizes(), 1) / scaling.RATE, abs=1e-3)
    latency, bandwidth = scaling.LINKS["between nodes"]
    assert row["exchange, us"] == pytest.approx(1e6 * (8 * latency * 6 + 2 * 44e6 * 63 / 64 / bandwidth), abs=1e-3)
    assert row["step, us"] == pytest.approx(row["compute, us"] + row["exchange, us"] + 1e6 * (scaling.FLOOR + scaling.INPUT), abs=1e-2)


def test_what_the_document_says_of_it():
    """More GPUs slow down a batch of 128 in all; thousands of rows a GPU scale well."""
    small, large = rows("128 in all"), rows("8192 a GPU")
    assert small[8]["step, us"] > small[1]["step, us"]
    assert large[512]["share of what GPUs could"] > 0.8
    assert large[512]["share of what GPUs could"] > rows("128 a GPU")[512]["share of what GPUs could"]


def test_bytes_are_counted_and_the_exchange_is_made(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value, **options: seen.append(value))
    replaced = torch.distributed.all_reduce
    with scaling.counted() as totals:
        torch.distributed.all_reduce(torch.zeros(10))
        torch.distributed.all_reduce(torch.zeros(3, dtype=torch.float64))
    assert totals == {"exchanges": 2, "bytes": 64} and len(seen) == 2
    assert torch.distributed.all_reduce is replaced
