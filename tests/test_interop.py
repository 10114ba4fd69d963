"""Weights of the released code: names and shapes; the outputs are compared in test_golden."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, interop


def state(golden, name):
    prefix = f"{name}/state/"
    return {key[len(prefix) :]: torch.tensor(golden[key]) for key in golden if key.startswith(prefix)}


@pytest.mark.parametrize("name, sizes, residual", [("uncond", (2, 0, 20), False), ("cond", (2, 2, 40), True)])
def test_sizes_are_read_from_the_weights(golden, name, sizes, residual):
    denoiser = interop.denoiser_from_ddvi(state(golden, name))
    assert (denoiser.latent_dim, denoiser.context_dim, denoiser.num_steps) == sizes
    assert denoiser.residual == residual and denoiser.hidden_dim == 128


def test_dtype_is_kept_and_nothing_shared(golden):
    weights = {name: value.double() for name, value in state(golden, "cond").items()}
    denoiser = interop.denoiser_from_ddvi(weights)
    assert denoiser.first.dtype == torch.float64
    denoiser.first.data.zero_()
    assert weights["lin1.lin.weight"].abs().max() > 0


def test_bad_states(golden):
    weights = state(golden, "cond")
    with pytest.raises(InputError, match=r"state_dict: expected the names of a released denoiser.*missing .*lin2.lin.bias.*unexpected .*extra"):
        interop.denoiser_from_ddvi({name: value for name, value in weights.items() if name != "lin2.lin.bias"} | {"extra": torch.zeros(1)})
    with pytest.raises(InputError, match="last_bias"):
        interop.denoiser_from_ddvi(weights | {"lin_mean.bias": torch.zeros(3)})
    with pytest.raises(InputError, match=r"lin3.lin.weight"):
        interop.denoiser_from_ddvi(weights | {"lin3.lin.weight": torch.zeros(128, 64)})
    with pytest.raises(InputError, match=r"lin1.embed.weight"):
        interop.denoiser_from_ddvi(weights | {"lin1.embed.weight": torch.zeros(128)})
