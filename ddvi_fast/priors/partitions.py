"""Classes of a prior: densities p(z | c) of all classes, and the prior whose latents contain their class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.priors.base import Prior
from ddvi_fast.priors.gaussian import Gaussian


def require_partitions(prior: Prior) -> int:
    """Return the number of the prior's equally likely classes, C.

    Raises:
        InputError: If the prior has no classes, such as the Gaussian.
    """
    hint = "pinwheel, swiss_roll_noisy, square, mixture and centres have them"
    _checks.require(prior.num_classes is not None, "prior", "one with classes", f"a {type(prior).__name__} prior, which has none", hint)
    return prior.num_classes


def class_log_probs(prior: Prior, z: Tensor) -> Tensor:
    """Compute log p(z | c) [C, ...] in nats of latents [..., D] under every class."""
    classes = torch.arange(require_partitions(prior), device=z.device)
    return torch.stack([prior.log_prob(z, label.expand(z.shape[:-1])) for label in classes])


def log_class_posterior(prior: Prior, z: Tensor, labels: Tensor) -> Tensor:
    """Compute log p(labels | z) [...] in nats under the prior, for latents [..., D] and labels that broadcast to [...]."""
    labels = labels.expand(z.shape[:-1])
    return prior.log_prob(z, labels) - math.log(require_partitions(prior)) - prior.log_prob(z)


class OneHotGaussian(Prior):
    """Prior of latents `(z, e_c)`: a standard normal `z` followed by the one-hot code of an independent uniform class.

    A decoder of these latents is the model M2 of Kingma et al. (2014), `p(x | z, c)`. Densities are with respect to Lebesgue measure in `z`
    and counting measure in `c`.

    Args:
        style_dim: Number of dimensions of `z` (int, default 50).
        num_classes: Number of classes, C (int, default 10). The latents have `style_dim + C` dimensions.

    Raises:
        InputError: If an argument is below 1.

    Example:
        >>> prior = OneHotGaussian(style_dim=2, num_classes=3)
        >>> prior.sample(2, labels=torch.tensor([2, 0]))[:, 2:].tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    @_checks.typed
    def __init__(self, style_dim: int = 50, num_classes: int = 10) -> None:
        super().__init__()
        num_classes = _checks.integer(num_classes, "num_classes", at_least=1)
        self.style = Gaussian(style_dim)
        self.num_classes, self.dim, self.noise_dim = num_classes, style_dim + num_classes, style_dim

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        style = self.style.push(u)
        return torch.cat((style, torch.nn.functional.one_hot(labels, self.num_classes).to(style)), -1)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        style, code = z.split((self.style.dim, self.num_classes), -1)
        log_prob = self.style.log_prob(style).masked_fill(code.isnan().any(-1), math.nan)
        if labels is None:
            return log_prob - math.log(self.num_classes)
        elsewhere = code.argmax(-1) != labels.expand(log_prob.shape)
        return log_prob.masked_fill(elsewhere & ~log_prob.isnan(), -math.inf)

    def _blurred(self, width: float) -> OneHotGaussian:
        blurred = OneHotGaussian(self.style.dim, self.num_classes)
        blurred.style = self.style.blurred(width)
        return blurred
