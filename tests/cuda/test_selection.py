"""Tests of the table that says which kernel runs a chain: every combination, its boundaries, and that the kernel takes what it is given."""

from __future__ import annotations

import itertools

import pytest
import torch

from ddvi_fast import precision
from ddvi_fast.cuda import selection
from ddvi_fast.cuda.selection import TABLE, Sizes
from ddvi_fast.kernels import shared_memory

BASE = Sizes(latent=2, context=2, hidden=128, steps=40, rows=128, precision="bf16", architecture=90)
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 103, 110, 120)
ROWS = (0, 128, 2592, 2593, 3168, 3169, 3552, 3553, 4320, 4321, 5280, 5281, 5920, 5921, 65536)
GRID = itertools.product((1, 16, 17, 64, 65), (0, 16, 17, 64, 65), (32, 64, 128, 256), (1, 1000, 1001), ROWS, precision.PRODUCTS, ARCHITECTURES)


def test_every_combination_has_exactly_one_kernel_which_takes_it():
    seen = set()
    for values in GRID:
        sizes = Sizes(*values)
        kernel = selection.choose(sizes)
        able = [row.kernel for row in TABLE if not row.refusal(sizes)]
        willing = [row.kernel for row in TABLE if row.kernel in able and not row.slower(sizes)]
        assert kernel == (willing[0] if willing else "reference"), sizes
        small = sizes.latent <= 16 and sizes.context <= 16 and sizes.hidden in (64, 128) and sizes.steps <= 1000 and sizes.architecture >= 80
        wave = 8 * {8: 108, 9: 132, 10: 148, 11: 148, 12: 148}.get(sizes.architecture // 10, 0)
        few = sizes.rows <= wave * (3 if sizes.precision in ("bf16", "fp16") else 5)
        fits = sizes.precision in ("bf16", "fp16") or sizes.hidden == 64 or sizes.architecture not in (86, 89, 120)
        widths = (64, 128) if sizes.architecture in (100, 103, 110) else (64, 128, 256)
        needed = shared_memory.most_bytes("chain", sizes.architecture, sizes.latent, sizes.context, sizes.hidden, not sizes.precision.endswith("16"))
        triton = sizes.latent <= 64 and sizes.context <= 64 and sizes.hidden in widths and needed <= shared_memory.available(sizes.architecture)
        assert kernel == ("cuda" if small and few and fits else "triton" if triton else "reference"), sizes
        seen.add(kernel)
    assert seen == {"cuda", "triton", "reference"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ""),
        ({"latent": 17}, "latent dimensions: expected at most 16, got 17"),
        ({"context": 17}, "context columns: expected at most 16, got 17"),
        ({"hidden": 256}, "hidden width: expected 64 or 128, got 256"),
        ({"steps": 1001}, "steps: expected at most 1000, got 1001"),
        ({"architecture": 75}, "device: expected compute capability 8.0 or later, got 7.5"),
        ({"architecture": 100}, ""),
        ({"precision": "float32", "architecture": 86}, "device: expected 144 KiB of shared memory for a program, got 99 KiB"),
        ({"precision": "fp8"}, "precision: expected float32 or tf32 or bf16 or fp16, got fp8"),
        ({"rows": 65536}, ""),  # it can, though Triton is faster
    ],
)
def test_the_reason_names_the_first_limit(changed, expected):
    assert selection.row_of("cuda").refusal(BASE._replace(**changed)) == expected


@pytest.mark.parametrize(("precision", "most"), [("bf16", 3168), ("float32", 5280)])
def test_many_rows_go_to_triton(precision, most):
    few, many = (BASE._replace(rows=rows, precision=precision) for rows in (most, most + 1))
    assert (selection.choose(few), selection.choose(many)) == ("cuda", "triton")
    assert selection.row_of("cuda").slower(few) == ""
    assert selection.row_of("cuda").slower(many) == f"rows: expected at most {most}, got {most + 1}"
    assert selection.limits(90)[precision] == most


def test_a_device_with_little_shared_memory_has_no_limit_for_what_it_cannot_run():
    assert selection.limits(86) == {"bf16": 2592, "fp16": 2592} and selection.limits(75) == {}


def test_every_precision_of_products_is_in_every_row():
    assert all(tuple(row.waves) == precision.PRODUCTS for row in TABLE)


@pytest.mark.parametrize(("latent", "context", "hidden"), list(itertools.product((1, 16, 64), (0, 16, 64), (64, 128, 256))))
def test_tritons_kernels_take_what_the_table_gives_them(latent, context, hidden, monkeypatch):
    pytest.importorskip("triton")
    from ddvi_fast.kernels import chain, chain_options, common

    device = "cpu" if common.interpreted(chain.chain_fwd_kernel) else "cuda"
    tensors = {"y_T": torch.zeros(1, latent, device=device), "hidden": torch.zeros(3, hidden, hidden, device=device)}
    tensors["context"] = torch.zeros(1, context, device=device) if context else None
    for name, newer in itertools.product(precision.PRODUCTS, (80, 86, 90, 100, 103, 110, 120)):
        monkeypatch.setattr(chain_options, "architecture", lambda device, newer=newer: newer)
        refusal = selection.row_of("triton").refusal(Sizes(latent, context, hidden, 40, 65536, name, newer))
        assert (chain.unsupported(name, **tensors) is None) == (refusal == ""), (name, newer)
        assert refusal == "" or newer in (86, 120) or hidden == 256
    tensors["y_T"] = torch.zeros(1, 65, device=device)
    assert chain.unsupported("bf16", **tensors) is not None
