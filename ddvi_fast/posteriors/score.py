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


class LikelihoodGradient:
    """The gradient of `model.log_likelihood(x, z)` for the latents without an autograd graph, for as long as the model does not change.

    The model is as in evaluation mode. The gradient is a constant, and a row's does not depend on the other rows.

    Args:
        x: Data [N, ...].
        kernel: The kernel, given the model and the data.
    """

    def __init__(self, x: Tensor, kernel: Callable[[Tensor], Tensor]) -> None:
        self.x, self._kernel = x, kernel

    @classmethod
    def of(cls, model: LatentVariableModel, x: Tensor) -> LikelihoodGradient | None:
        """Prepare the gradient.

        Args:
            model: The model.
            x: Data [N, ...].

        Returns:
            The gradient, or None where the kernel does not support the model or the data: it takes an `MLP` as decoder and the likelihoods
            of `likelihoods`, in float32 on the CPU.

        Example:
            >>> import torch
            >>> from ddvi_fast import likelihoods, networks, priors
            >>> from ddvi_fast.models import LatentVariableModel
            >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
            >>> gradient = LikelihoodGradient.of(model, torch.zeros(3, 5))
            >>> gradient is None or gradient(torch.zeros(7, 3, 2)).shape == (7, 3, 2)
            True
        """
        if (
            not _takes_types(model)
            or _operator.needs_dispatch(x)
            or _backend.fused(x.device) != "cpp"
            or hidden_precision(None, x.device) != "float32"
        ):
            return None
        layers, data = model.decoder.layers, x.detach().flatten(1)
        options = DecoderOptions(*_activation(model.decoder), **_LIKELIHOODS[type(model.likelihood)](model.likelihood))
        tensors = [part.detach() for part in (*(layer.weight for layer in layers), *(layer.bias for layer in layers))]
        kernel = _backend.implementation("cpp", "decoder")
        if data.shape[1] != len(tensors[-1]) or kernel.unsupported(x=data, scale=options.scale, **{str(i): part for i, part in enumerate(tensors)}):
            return None
        data, *tensors = _operator.contiguous(data, *tensors)
        return cls(x, kernel.Gradient(data, tensors[: len(layers)], tensors[len(layers) :], options))

    def takes(self, z: Tensor) -> bool:
        """Whether latents fit the data and the kernel."""
        return z.dtype == self.x.dtype and z.device == self.x.device and len(self.x) in (1, z.shape[-2]) and not _operator.needs_dispatch(z)

    def __call__(self, z: Tensor) -> Tensor:
        """Compute the gradient [.., N, D] at latents `z` [.., N, D]."""
        return self._kernel(z.detach().reshape(-1, z.shape[-1]).contiguous()).view(z.shape)


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
