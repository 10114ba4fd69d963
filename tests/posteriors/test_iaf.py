"""The autoregressive flow: golden step, initial gates, shared context."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, interop, networks, posteriors
from ddvi_fast.posteriors.iaf import AutoregressiveStep
from ddvi_fast.rng import Draws


def released_step(golden):
    prefix = "iaf/state/"
    return {name.removeprefix(prefix): torch.tensor(golden[name]) for name in golden if name.startswith(prefix)}


def test_the_released_step_is_reproduced(golden):
    step = interop.iaf_step_from_ddvi(released_step(golden), reverse=True)
    y, log_det = step(torch.tensor(golden["iaf/z"]), torch.tensor(golden["iaf/context"]))
    torch.testing.assert_close(y, torch.tensor(golden["iaf/out"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_det, torch.tensor(golden["iaf/log_det"]), rtol=1e-5, atol=1e-6)


def test_a_released_step_with_a_missing_name_is_refused(golden):
    state = released_step(golden)
    del state["net.net.h_layer.bias"]
    with pytest.raises(InputError, match=r"state_dict: .*h_layer\.bias"):
        interop.iaf_step_from_ddvi(state, reverse=True)


def test_open_gates_start_near_the_gaussian_and_the_released_ones_half_way():
    z, context = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(500, 3)
    for open_gates, share in ((True, torch.tensor(2.0).sigmoid().item()), (False, 0.5)):
        _, log_det = AutoregressiveStep(2, 3, draws=Draws(1), open_gates=open_gates)(z, context)
        assert torch.exp(log_det / 2).mean().item() == pytest.approx(share, abs=0.05)


def test_a_context_behind_the_encoders_output_is_that_of_a_network_of_its_own():
    encoder = networks.MLP(5, [8], 10, draws=Draws(1))
    first, last = networks.MLP(5, [8], 6), networks.MLP(5, [8], 4)
    for part, rows in ((first, slice(0, 6)), (last, slice(6, 10))):
        state = encoder.state_dict()
        part.load_state_dict({**state, "layers.1.weight": state["layers.1.weight"][rows], "layers.1.bias": state["layers.1.bias"][rows]})
    shared, apart = posteriors.IAF(encoder, None, 3, 4), posteriors.IAF(first, last, 3, 4)
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(shared.sample(x, 7, Draws(2)), apart.sample(x, 7, Draws(2)), strict=True):
        torch.testing.assert_close(found, expected)
