"""Weights of the paper's released code, read into this project's modules. Nothing is unpickled here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.denoisers import ResidualMLP

_LAYERS = ("lin1", "lin2", "lin3", "lin4")


def denoiser_from_ddvi(state_dict: Mapping[str, Tensor]) -> ResidualMLP:
    """A denoiser of the released code as a `ResidualMLP` with the same outputs.

    Args:
        state_dict: `lin1..lin4.lin.{weight,bias}`, `lin1..lin4.embed.weight` [T, H], `lin_mean.{weight,bias}`.
            The first layer is wider than `D` exactly when the denoiser is conditional.

    Raises:
        InputError: names missing or left over, or a shape that does not fit.
    """
    expected = {f"{layer}.{part}" for layer in _LAYERS for part in ("lin.weight", "lin.bias", "embed.weight")} | {"lin_mean.weight", "lin_mean.bias"}
    missing, unexpected = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    _checks.require(not missing and not unexpected, "state_dict", "the names of a released denoiser", f"missing {missing}, unexpected {unexpected}")
    state = {name: torch.as_tensor(value) for name, value in state_dict.items()}
    num_steps, hidden_dim = state["lin1.embed.weight"].shape
    latent_dim = state["lin_mean.weight"].shape[0]
    context_dim = state["lin1.lin.weight"].shape[1] - latent_dim
    denoiser = ResidualMLP(latent_dim, context_dim, num_steps, hidden_dim).to(state["lin_mean.weight"].dtype)
    ours = {
        "first": state["lin1.lin.weight"],
        "hidden": torch.stack([state[f"{layer}.lin.weight"] for layer in _LAYERS[1:]]),
        "bias": torch.stack([state[f"{layer}.lin.bias"] for layer in _LAYERS]),
        "embedding": torch.stack([state[f"{layer}.embed.weight"] for layer in _LAYERS], dim=1),
        "last": state["lin_mean.weight"],
        "last_bias": state["lin_mean.bias"],
    }
    for name, value in ours.items():
        parameter = getattr(denoiser, name)
        _checks.require(parameter.shape == value.shape, f"state_dict ({name})", f"shape {list(parameter.shape)}", value)
    denoiser.load_state_dict(ours)
    return denoiser
