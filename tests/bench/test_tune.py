"""Tests of the sweeps over launch options, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.device import tune
from ddvi_fast import _backend, use_backend

pytestmark = pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")
TINY = tune.Sweep("tiny", "mmd", {"N": 12, "M": 9, "P": 5}, False, "ours", "mmd", "product_options", ({"DEPTH": 64}, {"STAGES": 2}))


def test_a_candidate_takes_the_place_of_options_and_leaves():
    from ddvi_fast.kernels import kde_common, mmd

    before = mmd.product_options
    with tune.replaced(TINY, {"DEPTH": 64}):
        assert mmd.product_options() == {**before(), "DEPTH": 64}
    with tune.replaced(replace(TINY, module="kde_common", attribute="MOST_SHARES"), 7):
        assert kde_common.MOST_SHARES == 7
    assert mmd.product_options is before and kde_common.MOST_SHARES != 7


def test_candidates_are_timed_and_the_wrong_and_the_failed_are_named(capsys):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with use_backend("triton"):
        assert tune.compile_one((TINY, 0, device.type)) == ""
        failed = tune.compile_one((replace(TINY, candidates=({"TILE": 17},)), 0, device.type))
        tune.run(replace(TINY, candidates=(*TINY.candidates, {"TILE": 17})), ["", "", failed], device, 0.01)
    first, *lines = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("tiny (product_options): ") and first.endswith(" ms in use")
    assert sorted(line.split("  ")[-1] for line in lines[:2]) == ["{'DEPTH': 64}", "{'STAGES': 2}"]
    assert failed and "17" in lines[2] and failed in lines[2]


def test_candidates_are_ranked_by_predicted_time(capsys):
    """Those without a prediction come last, and the kernel of the options that are tried is the one that is predicted."""
    sweep = replace(TINY, candidates=({"TILE": 16}, {"DEPTH": 32}, {"TILE": 32}))
    times = [2.0, "no prediction", 1.0]
    assert tune.ranked(sweep, times) == [2, 0, 1]
    tune.show_predictions(sweep, 1.5, times)
    first, *lines = capsys.readouterr().out.strip().splitlines()
    assert first.endswith("1.500 ms in use") and [line.split("  ")[-1] for line in lines] == ["{'TILE': 32}", "{'TILE': 16}", "{'DEPTH': 32}"]


@pytest.mark.slow
def test_predictions_need_no_device():
    """In a process without the interpreter; a candidate has a time of its own."""
    script = (
        "from bench.device import tune\n"
        "sweep = tune.Sweep('tiny', 'mmd', {'N': 100, 'M': 90, 'P': 784}, False, 'ours', 'mmd', 'product_options', ({'STAGES': 2},))\n"
        "print(tune.predict_one((sweep, None)), tune.predict_one((sweep, 0)))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=Path(tune.__file__).parents[2])
    in_use, deeper = map(float, ran.stdout.split())
    assert 0.001 < deeper != in_use < 1


def test_every_sweep_names_what_is_there():
    import importlib

    for sweep in tune.SWEEPS:
        module = importlib.import_module(f"ddvi_fast.kernels.{sweep.module}")
        assert hasattr(module, sweep.attribute) and sweep.candidates, sweep
    assert len({sweep.name + sweep.attribute + sweep.provider for sweep in tune.SWEEPS}) == len(tune.SWEEPS)
