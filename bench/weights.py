"""Weights and gradients of our networks under the names of the baseline's networks, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.baselines import eager
from ddvi_fast import networks
from ddvi_fast.denoisers import ResidualMLP


def network_flops(latent: int, context: int, hidden: int) -> float:
    """Floating-point operations of a denoiser's forward pass for one row and step; a backward pass takes twice as many."""
    return 2.0 * (hidden * (latent + context) + 3 * hidden**2 + latent * hidden)


@torch.no_grad()
def copy_denoiser(source: ResidualMLP, target: eager.Denoiser, group: int | None = None) -> eager.Denoiser:
    """Copy our weights, or those of one group, into the baseline's network."""
    values = {name: value if group is None else value[group] for name, value in source.named_parameters()}
    for layer in range(4):
        target.layers[layer].weight.copy_(values["hidden"][layer - 1] if layer else values["first"])
        target.layers[layer].bias.copy_(values["bias"][layer])
        target.embeddings[layer].weight.copy_(values["embedding"][:, layer])
    target.last.weight.copy_(values["last"])
    target.last.bias.copy_(values["last_bias"])
    return target.to(source.first.device)


def denoiser_gradients(network: eager.Denoiser, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradients of `network.parameters()` under our names."""
    by_name = dict(zip((name for name, _ in network.named_parameters()), gradients, strict=True))
    weights = [by_name[f"layers.{layer}.weight"] for layer in range(4)]
    return {
        "first": weights[0],
        "hidden": torch.stack(weights[1:]),
        "last": by_name["last.weight"],
        "last_bias": by_name["last.bias"],
        "bias": torch.stack([by_name[f"layers.{layer}.bias"] for layer in range(4)]),
        "embedding": torch.stack([by_name[f"embeddings.{layer}.weight"] for layer in range(4)], dim=1),
    }


@torch.no_grad()
def copy_perceptron(source: networks.MLP, target: nn.Sequential) -> None:
    """Copy our weights into one of the baseline's dense networks."""
    for ours, theirs in zip(source.parameters(), linear_parameters(target), strict=True):
        theirs.copy_(ours)


def linear_parameters(network: nn.Sequential) -> list[nn.Parameter]:
    """Weight and bias of one linear layer after another, in our order."""
    return [parameter for layer in network if isinstance(layer, nn.Linear) for parameter in (layer.weight, layer.bias)]
