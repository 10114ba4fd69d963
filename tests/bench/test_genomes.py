"""Tests of the genotype problems: providers agree at small sizes, and a wrong one is detected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import cases, genomes

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["codes", "scaled"])
def test_unpacking_is_checked(kind, monkeypatch):
    problem = genomes.Unpacking(CPU, N=20, M=77, kind=kind)
    for name in ("eager", "ours"):
        problem.check(name)
        assert problem.provider(name)().shape == (20, 77)
    monkeypatch.setattr(genomes, "unpack", lambda packed, count: torch.zeros(len(packed), count, dtype=torch.uint8))
    monkeypatch.setattr(genomes, "unpack_scaled", lambda packed, centre, *rest: torch.zeros(len(packed), len(centre)))
    with pytest.raises(AssertionError):
        problem.check("ours")


def test_components_are_checked(monkeypatch):
    problem = genomes.Components(CPU, N=60, M=2000, kind="pca")
    problem.check("ours")
    monkeypatch.setattr(problem, "_ours", lambda: np.random.default_rng(0).normal(size=(60, 20)))
    with pytest.raises(AssertionError, match="cosine"):
        problem.check("ours")


def test_latents_are_checked(monkeypatch):
    problem = genomes.Mapping(CPU, N=3000, M=20, kind="map")
    problem.check("eager")
    problem.check("ours")
    monkeypatch.setattr(problem, "_latents", lambda rows, name: problem.model.transform(rows) + np.float32(1e-3))
    with pytest.raises(AssertionError):
        problem.check("ours")


def test_the_cases_have_the_sizes_that_are_promised():
    (million,) = cases.in_set("million")
    assert dict(million.shape) == {"kind": "pca", "N": 2504, "M": 1_000_000} and million.most_bytes == 2 * 10**9 and million.providers == ("ours",)
    assert {dict(case.shape)["kind"] for case in cases.in_set("genomes")} == {"codes", "scaled", "pca", genomes.QUICK, "map"}
