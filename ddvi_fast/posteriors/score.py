"""Gradient of a model's log-likelihood for the latents, in one call where the C++ kernel supports the decoder and the likelihood."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ddvi_fast import _backend, _operator
from ddvi_fast._operands import DecoderOptions
from ddvi_fast.dense import SLOPES
from ddvi_fast.likelihoods import Bernoulli, Binomial, Gaussian, Likelihood
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.precision import hidden_precision

# Types whose subclasses may compute anything else.
_LIKELIHOODS: dict[type[Likelihood], Callable[..., dict]] = {
    Bernoulli: lambda likelihood: {"likelihood": "bernoulli"},
    Gaussian: lambda likelihood: {
        "likelihood": "gaussian",
        "scale": likelihood.log_scale.detach().exp().reshape(-1),
        "value_range": likelihood.value_range,
    },
    Binomial: lambda likelihood: {"likelihood": "binomial", "total": float(likelihood.total)},
}


def likelihood_gradient(model: LatentVariableModel, x: Tensor, z: Tensor) -> Tensor | None:
    """Compute the gradient of `model.log_likelihood(x, z)` for the latents without an autograd graph.

    The model is as in evaluation mode. The gradient is a constant, and a row's does not depend on the other rows.

    Args:
        model: The model.
        x: Data [N, ...].
        z: Latents [.., N, D].

    Returns:
        The gradient [.., N, D], or None where the kernel does not support the model or the tensors: it takes an `MLP` as decoder and the
        likelihoods of `likelihoods`, in float32 on the CPU.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> gradient = likelihood_gradient(model, torch.zeros(3, 5), torch.zeros(7, 3, 2))
        >>> gradient is None or gradient.shape == (7, 3, 2)
        True
    """
    decoder, likelihood = model.decoder, model.likelihood
    if not _takes_types(model) or _operator.needs_dispatch(x, z) or _backend.fused(z.device) != "cpp":
        return None
    if hidden_precision(None, z.device) != "float32":
        return None
    weights, biases = [layer.weight.detach() for layer in decoder.layers], [layer.bias.detach() for layer in decoder.layers]
    options = DecoderOptions(*_activation(decoder), **_LIKELIHOODS[type(likelihood)](likelihood))
    data = x.detach().flatten(1)
    fits = z.shape[-1] == decoder.inputs and data.shape[1] == len(biases[-1]) and len(data) in (1, z.shape[-2])
    kernel = _backend.implementation("cpp", "decoder")
    named = {str(number): value for number, value in enumerate((*weights, *biases))}
    if not fits or kernel.unsupported(z=z, x=data, scale=options.scale, **named):
        return None
    z, data, *tensors = _operator.contiguous(z.detach(), data, *weights, *biases)
    flat = kernel.gradient(z.reshape(-1, z.shape[-1]), data, tensors[: len(weights)], tensors[len(weights) :], options)
    return flat.view(z.shape)


def _takes_types(model: LatentVariableModel) -> bool:
    """Whether the model computes the log-likelihood as its class does, with parts that the kernel knows."""
    plain = type(model).log_likelihood is LatentVariableModel.log_likelihood and type(model.likelihood) in _LIKELIHOODS
    # A layer with a parametrization has a class of its own.
    return plain and type(model.decoder) is MLP and not _hooked(model.decoder) and all(type(layer) is nn.Linear for layer in model.decoder.layers)


def _hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, which the kernel would not call."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _activation(decoder: MLP) -> tuple[str, float]:
    """The kernel's names of the activation of the hidden layers: its kind and its slope below zero."""
    slope = SLOPES.get(decoder.activation)
    return (decoder.activation, 0.0) if slope is None else ("slope", slope)
