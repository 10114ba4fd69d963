"""Likelihoods p(x | z), parametrized by a decoder's output."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast.precision import as_float32
from ddvi_fast.rng import Draws


class Likelihood(nn.Module):
    """Base class of likelihoods. A decoder's output is [.., P]; data are flattened to [.., P]."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Compute the log-likelihood, summed over the data's dimensions.

        Args:
            output: Output of the decoder [.., P].
            x: Data [.., P]; leading axes broadcast.

        Returns:
            Log-likelihoods [..] in nats.
        """
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean E[x | output], [.., P]."""
        raise NotImplementedError

    def sample(self, output: Tensor, draws: Draws) -> Tensor:
        """Draw data x ~ p(x | output), [.., N, P]; `draws` is the position of the first row in the random stream."""
        raise NotImplementedError

    def pairwise(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Compute the log-likelihoods [M, N] in nats of data [N, P] under outputs [M, P], for all pairs."""
        return self.log_prob(outputs.unsqueeze(1), x)


class Bernoulli(Likelihood):
    """Bernoulli likelihood of logits. Data between 0 and 1 are targets of the cross-entropy."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return ops.bernoulli_log_likelihood(output, x)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def sample(self, output: Tensor, draws: Draws) -> Tensor:
        return _uniform(output, draws).lt_(torch.sigmoid(output))

    def pairwise(self, outputs: Tensor, x: Tensor) -> Tensor:
        return outputs @ x.mT - nn.functional.softplus(outputs).sum(-1, keepdim=True)


class Gaussian(Likelihood):
    """Gaussian likelihood with a standard deviation for all dimensions or one for each, fixed or learned.

    Args:
        scale: Standard deviation, or its initial value (float, default 1).
        learn_scale: Train the standard deviation (bool, default False).
        value_range: Smallest and largest value of the data. The mean is then `low + (high - low) sigmoid(output)`. Default: None, the output
            is the mean.
        width: Number of dimensions P, for a standard deviation per dimension (int). Default: None, one for all.

    Raises:
        InputError: If an argument is out of range.
    """

    @_checks.typed
    def __init__(self, scale: float = 1.0, learn_scale: bool = False, value_range: Sequence[float] | None = None, width: int | None = None) -> None:
        super().__init__()
        width = None if width is None else _checks.integer(width, "width", at_least=1)
        scale = _checks.width(scale, "scale")
        self.value_range = None if value_range is None else _range(value_range)
        self.log_scale = nn.Parameter(torch.full(() if width is None else (width,), math.log(scale), **as_float32), requires_grad=learn_scale)

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return ops.gaussian_log_likelihood(self.mean(output), x, self._scale(output))

    def mean(self, output: Tensor) -> Tensor:
        if self.value_range is None:
            return output
        low, high = self.value_range
        return low + (high - low) * torch.sigmoid(output)

    def sample(self, output: Tensor, draws: Draws) -> Tensor:
        noise = rng.normal(draws, tuple(output.shape), rng.OBSERVATION, device=output.device, dtype=output.dtype)
        return self.mean(output) + self._scale(output) * noise

    def pairwise(self, outputs: Tensor, x: Tensor) -> Tensor:
        # One matrix product. Data are centred, so that little precision is lost when the squares cancel.
        centre, scale = x.mean(0), self._scale(outputs)
        means, x = (self.mean(outputs) - centre) / scale, (x - centre) / scale
        squared = means.square().sum(-1, keepdim=True) - 2 * means @ x.mT + x.square().sum(-1)
        return -0.5 * squared - (torch.log(scale) + 0.5 * math.log(2 * math.pi)).expand(x.shape[-1]).sum()

    def _scale(self, like: Tensor) -> Tensor:
        return self.log_scale.exp().to(like)


class Binomial(Likelihood):
    """Binomial likelihood of counts out of `total`, given logits. A count that is NaN is missing and has log-likelihood 0.

    Args:
        total: Number of trials (int, default 2, as for genotypes).

    Raises:
        InputError: If `total` is not a positive integer.
    """

    @_checks.typed
    def __init__(self, total: int = 2) -> None:
        super().__init__()
        self.total = _checks.integer(total, "total", at_least=1)

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        missing = x.isnan()
        # A missing count is 0 successes of probability 0: log-likelihood and gradient are 0.
        return ops.binomial_log_likelihood(output.masked_fill(missing, _NEVER), x.masked_fill(missing, 0.0), self.total)

    def mean(self, output: Tensor) -> Tensor:
        return self.total * torch.sigmoid(output)

    def sample(self, output: Tensor, draws: Draws) -> Tensor:
        trials = _uniform(output.repeat_interleave(self.total, dim=-1), draws).unflatten(-1, (-1, self.total))
        return (trials < torch.sigmoid(output).unsqueeze(-1)).to(output.dtype).sum(-1)

    def pairwise(self, outputs: Tensor, x: Tensor) -> Tensor:
        called = (~x.isnan()).to(outputs)
        constant = self.log_prob(torch.zeros_like(x), x) + self.total * math.log(2) * called.sum(-1)
        return outputs @ x.nan_to_num(0.0).mT - self.total * nn.functional.softplus(outputs) @ called.mT + constant


def _range(value: Any) -> tuple[float, float]:
    expected = "None or (low, high) with low < high"
    pair = isinstance(value, Sequence) and len(value) == 2 and not isinstance(value, str)
    _checks.require(pair, "value_range", expected, value)
    low, high = (float(_checks.number(bound, "value_range")) for bound in value)
    _checks.require(low < high, "value_range", expected, value)
    return low, high


def _uniform(like: Tensor, draws: Draws) -> Tensor:
    return rng.uniform(draws, tuple(like.shape), rng.OBSERVATION, device=like.device, dtype=like.dtype)


_NEVER = -1e4  # logit of probability 0 in every precision
_LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian, "binomial": Binomial}


def make(name: str, **options: Any) -> Likelihood:
    """Make a likelihood by name.

    Args:
        name: ``bernoulli``, ``gaussian`` or ``binomial``.
        options: Arguments of the likelihood's class.

    Returns:
        The likelihood.

    Raises:
        InputError: If the name or an option is unknown; the message contains the nearest valid ones.

    Example:
        >>> make("binomial", total=2).log_prob(torch.zeros(1, 3), torch.ones(1, 3)).exp().item()
        0.125
    """
    family = _LIKELIHOODS[_checks.choice(name, _LIKELIHOODS, "likelihood")]
    # A class without options inherits `*args, **kwargs`, which are no options.
    known = [argument.name for argument in inspect.signature(family).parameters.values() if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    for option in options:
        _checks.choice(option, known, f"option of the {name} likelihood")
    return family(**options)
