"""The profile of host time: operators take the way of a device, and nothing is launched."""

from __future__ import annotations

import pytest
import torch

from bench.device import host

pytest.importorskip("triton")

LAUNCHES = {
    "gaussian_kl": 1, "bernoulli_log_likelihood": 1, "log_mean_exp": 1, "add_noise": 1, "kde_log_density": 2, "mmd": 3, "sample_chain": 2,
    "denoising_loss": 2, "normal": 1,
}  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton refuses tensors of the CPU")
def test_operators_launch_nothing(monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(InterpretedFunction, "run", None)
    with host.without_launches() as launched, torch.no_grad():
        found = {}
        for name, call in host.operators().items():
            launched.clear()
            call()
            found[name] = len(launched)
    assert found == LAUNCHES


def test_the_least_of_the_rounds_is_taken():
    assert 0 < host.microseconds(lambda: sum(range(100)), repeats=5, rounds=5) < host.microseconds(lambda: sum(range(10_000)), repeats=5, rounds=5)
