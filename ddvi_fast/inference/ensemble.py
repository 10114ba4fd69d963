"""Several trained chains as one: the chain whose denoiser and context are those of all of them side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast.inference.networks import Architecture, Reader
from ddvi_fast.posteriors import Diffusion


def joined(architecture: Architecture, count: int) -> Architecture:
    """The architecture of `count` chains side by side."""
    wider = {"width": count * architecture.width, "context_dim": count * architecture.context_dim}
    return dataclasses.replace(architecture, **wider, hidden=tuple(count * width for width in architecture.hidden), ensemble=1)


@torch.no_grad()
def average(members: Sequence[Diffusion], whole: Diffusion) -> Diffusion:
    """Make the chain whose denoiser is the mean of those of `members`, each with its own context. The frame is left to the caller.

    The squared error of a mean of predictions is at most the mean of their squared errors. Side by side, with zeros between them, the networks
    are one network of the same kind.

    Args:
        members: Chains of one architecture.
        whole: Chain of the architecture of `joined`, whose denoiser and context are replaced.

    Returns:
        The chain `whole`.
    """
    _denoisers(members, whole)
    _contexts([member.context_encoder for member in members], whole.context_encoder)
    whole.log_variance_factors.copy_(torch.stack([member.log_variance_factors for member in members]).mean(0))
    return whole


def _denoisers(members: Sequence[Diffusion], whole: Diffusion) -> None:
    made, dim = whole.denoiser, whole.latent_dim
    for parameter in made.parameters():
        parameter.zero_()
    for place, member in enumerate(members):
        one = member.denoiser
        mine = _part(place, one.hidden_dim)
        context = _part(place, one.context_dim, dim)
        made.first[mine, :dim], made.first[mine, context] = one.first[:, :dim], one.first[:, dim:]
        made.hidden[:, mine, mine] = one.hidden
        made.bias[:, mine], made.embedding[:, :, mine] = one.bias, one.embedding
        made.last[:, mine] = one.last / len(members)
        made.last_bias += one.last_bias / len(members)


def _contexts(members: Sequence[Reader], whole: Reader) -> None:
    """Put the context of each member into its columns of the whole one's."""
    for places in zip(whole.network.layers, *(member.network.layers for member in members), strict=True):
        _side_by_side(places[0], places[1:], same_inputs=places[0] is whole.network.layers[0])
    _side_by_side(whole.linear.layers[0], [member.linear.layers[0] for member in members], same_inputs=True)


def _side_by_side(made: torch.nn.Linear, layers: Sequence[torch.nn.Linear], same_inputs: bool) -> None:
    made.weight.zero_()
    for place, layer in enumerate(layers):
        outputs, inputs = layer.weight.shape
        columns = slice(None) if same_inputs else _part(place, inputs)
        made.weight[_part(place, outputs), columns] = layer.weight
        made.bias[_part(place, outputs)] = layer.bias


def _part(place: int, width: int, first: int = 0) -> slice:
    return slice(first + place * width, first + (place + 1) * width)


@torch.no_grad()
def fit_variances(posterior: Diffusion, errors: Tensor) -> None:
    """Set the variances of the steps to the best ones for given mean squared errors of their means.

    For a step of `r` with variance `v`, and a mean that is wrong by `e` in the mean square of each dimension, `KL(r || q)` is least at the
    variance `v + e`.

    Args:
        posterior: Chain with learned variances.
        errors: Mean squared errors, float64 [T].
    """
    schedule = posterior.schedule
    base = schedule.coefficients(posterior.parametrisation, posterior.eta, posterior.final_variance)[:, 2].double()
    posterior.log_variance_factors.copy_(torch.log((schedule.posterior_variances + errors) / base.square()))
