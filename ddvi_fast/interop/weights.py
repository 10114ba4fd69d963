"""Conversion of weights of the released code into modules of this package."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.iaf import AutoregressiveStep

_LAYERS = ("lin1", "lin2", "lin3", "lin4")


def denoiser_from_ddvi(state_dict: Mapping[str, Tensor]) -> ResidualMLP:
    """Convert a denoiser of the released code into a `ResidualMLP` with the same outputs.

    Args:
        state_dict: Tensors `lin1..lin4.lin.{weight,bias}`, `lin1..lin4.embed.weight` [T, H], `lin_mean.{weight,bias}`.
            The first layer has more than D inputs if the denoiser is conditional.

    Raises:
        InputError: A name is missing or unexpected, or a shape does not match.
    """
    expected = {f"{layer}.{part}" for layer in _LAYERS for part in ("lin.weight", "lin.bias", "embed.weight")} | {"lin_mean.weight", "lin_mean.bias"}
    state = _named(state_dict, expected, "a released denoiser")
    for name in ("lin1.embed.weight", "lin_mean.weight", "lin1.lin.weight"):
        _checks.tensor(state[name], f"state_dict ({name})", (None, None))
    num_steps, hidden_dim = state["lin1.embed.weight"].shape
    latent_dim = state["lin_mean.weight"].shape[0]
    context_dim = state["lin1.lin.weight"].shape[1] - latent_dim
    # Checked before the layers are stacked, which needs equal shapes.
    for layer in _LAYERS[1:]:
        _checks.tensor(state[f"{layer}.lin.weight"], f"state_dict ({layer}.lin.weight)", (hidden_dim, hidden_dim))
    for layer in _LAYERS:
        _checks.tensor(state[f"{layer}.lin.bias"], f"state_dict ({layer}.lin.bias)", (hidden_dim,))
        _checks.tensor(state[f"{layer}.embed.weight"], f"state_dict ({layer}.embed.weight)", (num_steps, hidden_dim))
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
        _same_shape(name, getattr(denoiser, name), value)
    denoiser.load_state_dict(ours)
    return denoiser


def denoisers_in(state_dict: Mapping[str, Tensor]) -> dict[str, ResidualMLP]:
    """Denoisers inside the state dictionary of a whole model, by prefix (`""` for the state dictionary of a denoiser)."""
    return {prefix: denoiser_from_ddvi(part) for prefix, part in _parts(state_dict, "lin_mean.weight").items()}


def iaf_steps_in(state_dict: Mapping[str, Tensor]) -> dict[str, AutoregressiveStep]:
    """IAF steps inside the state dictionary of a whole model, by prefix; every second one reverses the dimensions."""
    parts = _parts(state_dict, "net.net.h_layer.weight")
    return {prefix: iaf_step_from_ddvi(part, reverse=number % 2 == 1) for number, (prefix, part) in enumerate(parts.items())}


def mlp_from_ddvi(state_dict: Mapping[str, Tensor], activation: str = "leaky_relu", dropout: float = 0.2) -> MLP:
    """Convert a stack of linear layers of the released code, such as an encoder or a decoder, into an `MLP`.

    Args:
        state_dict: Tensors `weight` and `bias` of linear layers, in their order. Several last layers with the same hidden layer as input
            (heads of mean and log-variance) become one layer with all outputs.
        activation: Activation between layers (default ``leaky_relu``).
        dropout: Dropout rate after each hidden layer in training (float, default 0.2).

    Raises:
        InputError: There are other tensors, or the widths of consecutive layers do not match.

    Example:
        >>> layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.LeakyReLU(0.2), torch.nn.Linear(8, 4))
        >>> x = torch.ones(3, 5)
        >>> bool(torch.allclose(mlp_from_ddvi(layers.state_dict())(x), layers(x), atol=1e-6))
        True
    """
    names = [name.removesuffix("weight") for name in state_dict if name.endswith("weight")]
    state = _named(state_dict, {f"{name}{part}" for name in names for part in ("weight", "bias")}, "linear layers")
    _checks.require(bool(names), "state_dict", "at least one linear layer", "none")
    layers = [(_checks.tensor(state[f"{name}weight"], f"state_dict ({name}weight)", (None, None)), state[f"{name}bias"]) for name in names]
    layers = _with_joined_heads(layers)
    widths = [len(bias) for _, bias in layers]
    mlp = MLP(layers[0][0].shape[1], widths[:-1], widths[-1], activation=activation, dropout=dropout).to(layers[0][0].dtype)
    for number, (layer, (weight, bias)) in enumerate(zip(mlp.layers, layers, strict=True)):
        _same_shape(f"layer {number}", layer.weight, weight)
        _same_shape(f"bias of layer {number}", layer.bias, bias)
    mlp.load_state_dict({f"layers.{number}.{part}": value for number, layer in enumerate(layers) for part, value in zip(_PARTS, layer, strict=True)})
    return mlp


_PARTS = ("weight", "bias")


def _with_joined_heads(layers: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Join the last layers, where they all have the same hidden layer as input."""
    first = len(layers) - 1
    while first > 0 and layers[first][0].shape[1] != len(layers[first - 1][1]):
        first -= 1
    heads = layers[first:]
    widths = {head[0].shape[1] for head in heads}
    _checks.require(len(widths) == 1, "state_dict", "layers that follow one another", f"last layers of {sorted(widths)} inputs")
    weight, bias = (torch.cat([head[part] for head in heads]) for part in (0, 1))
    return [*layers[:first], (weight, bias)]


def iaf_step_from_ddvi(state_dict: Mapping[str, Tensor], reverse: bool) -> AutoregressiveStep:
    """Convert an IAF step of the released code into an `AutoregressiveStep`.

    Args:
        state_dict: Tensors `net.net.h_layer.{weight,bias}` and `net.net.net.{0,2,4,6}.{weight,bias,mask}`; masks are only checked.
        reverse: Whether the step reverses the dimensions.
    """
    layers = (0, 2, 4, 6)
    parts = {f"net.net.net.{layer}.{part}" for layer in layers for part in ("weight", "bias", "mask")}
    state = _named(state_dict, parts | {"net.net.h_layer.weight", "net.net.h_layer.bias"}, "a released IAF step")
    hidden_dim, context_dim = state["net.net.h_layer.weight"].shape
    step = AutoregressiveStep(state["net.net.net.0.weight"].shape[1], context_dim, hidden_dim, reverse).to(state["net.net.h_layer.weight"].dtype)
    ours = {f"layers.{index}.{part}": state[f"net.net.net.{layer}.{part}"] for index, layer in enumerate(layers) for part in ("weight", "bias")}
    ours |= {f"context_layer.{part}": state[f"net.net.h_layer.{part}"] for part in ("weight", "bias")}
    for name, parameter in step.named_parameters():
        _same_shape(name, parameter, ours[name])
    for index, layer in enumerate(layers):
        same = torch.equal(getattr(step, f"mask{index}"), state[f"net.net.net.{layer}.mask"])
        _checks.require(same, "state_dict", "masks in the released order", f"another mask of layer {layer}")
    step.load_state_dict(ours)
    return step


def _parts(state_dict: Mapping[str, Tensor], mark: str) -> dict[str, dict[str, Tensor]]:
    """Parts of a state dictionary that contain the name `mark`, by their prefix."""
    prefixes = [name.removesuffix(mark) for name in state_dict if name == mark or name.endswith(f".{mark}")]
    return {prefix: {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)} for prefix in prefixes}


def _named(state_dict: Mapping[str, Tensor], expected: set[str], what: str) -> dict[str, Tensor]:
    """Tensors of a state dictionary with exactly the `expected` names."""
    missing, unexpected = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    _checks.require(not missing and not unexpected, "state_dict", f"the names of {what}", f"missing {missing}, unexpected {unexpected}")
    return {name: torch.as_tensor(value, device="cpu") for name, value in state_dict.items()}


def _same_shape(name: str, parameter: Tensor, value: Tensor) -> None:
    _checks.require(parameter.shape == value.shape, f"state_dict ({name})", f"shape {list(parameter.shape)}", value)
