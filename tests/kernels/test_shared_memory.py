"""Tests of what is refused for lack of shared memory: formulas against what compiled kernels take, and that the refusal is one clear line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from bench.device import shared_memory as compiled
from ddvi_fast import _backend
from ddvi_fast.cuda import selection
from ddvi_fast.kernels import shared_memory

TABLE = compiled.table()
SIZES = sorted({tuple(row[:5]) for row in TABLE})
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


def _two(precision):
    return precision == "float32"


def test_no_compiled_kernel_needs_more_than_the_formula_says():
    for architecture, latent, context, hidden, precision, name, rows, keeps, found in TABLE:
        kernel = compiled.KERNELS[name.split()[0]]
        most = shared_memory.needed(kernel, architecture, latent, context, hidden, _two(precision), rows)
        assert found <= (shared_memory.available(architecture) if keeps else most), (architecture, latent, context, hidden, precision, name)


@pytest.mark.parametrize("kernel", ["chain", "sleep"])
def test_exactly_those_sizes_are_refused_that_do_not_fit(kernel):
    """A size is refused if one of its compiled kernels needs more than there is; every one of them was compiled."""
    refused = set()
    for size in SIZES:
        architecture, latent, context, hidden, precision = size
        rows = [row for row in TABLE if tuple(row[:5]) == size and compiled.KERNELS[row[5].split()[0]] in (kernel, "weights")]
        fits = all(row[-1] <= shared_memory.available(architecture) for row in rows)
        most = shared_memory.most_bytes(kernel, architecture, latent, context, hidden, _two(precision))
        reason = shared_memory.refusal(most, architecture)
        whole = {row[5].split()[0] for row in rows} >= {name for name, of in compiled.KERNELS.items() if of in (kernel, "weights")}
        assert (fits or reason) and (not reason or not fits or not whole), (size, reason)
        refused |= {size} if reason else set()
    named = {(90, 64, 64, 256, "float32"), (86, 3, 32, 128, "float32"), (80, 64, 64, 128, "float32")}
    assert refused and (kernel == "chain" or named <= refused)


def test_more_columns_of_contexts_need_no_less():
    for architecture, hidden, two, kernel in itertools.product(ARCHITECTURES, (64, 128, 256), (False, True), ("chain", "sleep")):
        for latent in (2, 16, 32, 64):
            needs = [shared_memory.most_bytes(kernel, architecture, latent, context, hidden, two) for context in (16, 32, 64)]
            assert needs == sorted(needs) and len(set(needs)) == 3


def test_tiles_of_weight_gradients_fit_wherever_the_chain_does():
    pytest.importorskip("triton")
    from ddvi_fast.kernels import chain_options, weight_gradient

    for architecture, hidden, two in itertools.product(ARCHITECTURES, (64, 128, 256), (False, True)):
        for latent, context in itertools.product((2, 16, 32, 64), (0, 16, 32, 64)):
            if shared_memory.refusal(shared_memory.most_bytes("chain", architecture, latent, context, hidden, two), architecture):
                continue
            options = weight_gradient.weight_options(architecture, chain_options.Sizes(1, 1 << 16, latent, context, hidden, 40), two)
            needed = shared_memory.needed("weights", architecture, latent, context, hidden, two, options["BN"])
            assert options["KEEP"] or needed <= shared_memory.available(architecture)


@pytest.mark.parametrize(("module", "latents", "what"), [("chain", "y_T", "chain"), ("sleep", "x0", "regression")])
def test_the_refusal_is_one_line_that_names_the_bytes(module, latents, what, monkeypatch):
    pytest.importorskip("triton")
    from ddvi_fast.kernels import chain_options, common

    implementation = _backend.implementation("triton", module)
    device = "cpu" if common.interpreted(_kernel(implementation)) else "cuda"
    tensors = {
        latents: torch.zeros(1, 3, device=device),
        "context": torch.zeros(1, 64, device=device),
        "hidden": torch.zeros(3, 128, 128, device=device),
    }
    monkeypatch.setattr(chain_options, "architecture", lambda device: 86)
    for name in ("float32", "tf32"):
        reason = implementation.unsupported(name, **tensors)
        needed = {"chain": 104, "regression": 144}[what]
        assert reason == f"device: expected {needed} KiB of shared memory for a program, got 99 KiB (in the Triton {what} of these sizes in {name})"
    tensors["context"] = tensors["context"][:, :2]
    assert implementation.unsupported("float32", **tensors) is None
    monkeypatch.setattr(chain_options, "architecture", lambda device: 90)
    assert implementation.unsupported("float32", **tensors) is None


def _kernel(implementation):
    return next(value for name, value in vars(implementation).items() if name.endswith("_fwd_kernel"))


def test_the_table_of_kernels_refuses_what_tritons_kernels_do():
    sizes = selection.Sizes(latent=64, context=64, hidden=256, steps=40, rows=65536, precision="float32", architecture=90)
    assert selection.choose(sizes) == "reference" and selection.row_of("triton").refusal(sizes).endswith("for a program, got 227 KiB")
    assert selection.choose(sizes._replace(context=16)) == "triton"
    assert selection.choose(sizes._replace(hidden=128)) == "triton"
    assert selection.choose(sizes._replace(hidden=128, architecture=120)) == "reference"


_MEASURED = """
import json, sys
from bench.device import shared_memory
print(json.dumps([row for each in json.loads(sys.argv[1]) for row in shared_memory.measured(*each)]))
"""


@pytest.mark.slow
def test_the_table_is_what_compiles():
    pytest.importorskip("triton")
    chosen = [(86, 3, 32, 128, "bf16", "weights"), (90, 16, 16, 128, "bf16", "weights"), (80, 3, 32, 256, "bf16", "chain_bwd")]
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _MEASURED, json.dumps(chosen)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=compiled.REFERENCES.parents[2], env=compiling)
    assert done.returncode == 0, done.stderr
    rows = {tuple(row[:6]): row for row in TABLE}
    found = json.loads(done.stdout)
    assert found and all(row == rows.get(tuple(row[:6]), row) for row in found) and any(tuple(row[:6]) in rows for row in found)
