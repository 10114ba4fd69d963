"""The interface of a prior `p(z)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast.priors.curve import along_curve
from ddvi_fast.rng import Draws

KDE_BANDWIDTHS = (0.005, 0.008, 0.01, 0.03, 0.05)  # of the released code's density
KDE_POINTS = 10_000
KDE_CLAMP = 1000.0
_KEPT_BLURS = 4


class Prior(nn.Module):
    """A prior over `dim` latents, cut into `num_classes` equally likely partitions, or None.

    A family writes `_sample` and `_log_prob`, which take labels or None, and `integration_nodes`.
    """

    dim: int
    num_classes: int | None = None

    def sample(
        self,
        n: int,
        draws: Draws | None = None,
        labels: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """`n` samples [n, D]; row `i` depends on draw `first_index + i` alone, and lies in the partition of `labels[i]` if given.

        `draws` defaults to `Draws(0)`: two calls without it give the same samples.
        """
        _checks.require(n >= 0, "n", "at least 0", n)
        draws = Draws(0) if draws is None else draws
        if labels is None and self.num_classes is not None:
            labels = self.sample_labels(n, draws, device)
        elif labels is not None:
            self._check_labels(labels)
            _checks.require(labels.shape == (n,), "labels", f"shape [{n}]", labels)
        return self._sample(n, draws, labels, torch.device(device)).to(dtype)

    def sample_labels(self, n: int, draws: Draws, device: torch.device | str = "cpu") -> Tensor:
        """Uniform classes, int64 [n]: those of the partitions that `sample` visits for the same draws."""
        _checks.require(self.num_classes is not None, "labels", "a prior with classes", type(self).__name__)
        return (rng.uniform(draws, (n, 1), rng.PRIOR, device=device).squeeze(1) * self.num_classes).long().clamp(max=self.num_classes - 1)

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z), or log p(z | labels), in nats: [..., D] -> [...]; finite and differentiable far from the support too."""
        _checks.tensor(z, "z")
        _checks.require(z.shape[-1] == self.dim, "z", f"shape [..., {self.dim}]", z)
        if labels is not None:
            self._check_labels(labels)
        self.require_density()
        return self._log_prob(z, labels)

    def require_density(self) -> None:
        """Refuse a prior without a density; every prior that has width passes."""

    def log_prob_kde(
        self, z: Tensor, num_points: int = KDE_POINTS, bandwidths: Sequence[float] = KDE_BANDWIDTHS, clamp: float | None = KDE_CLAMP, seed: int = 0
    ) -> Tensor:
        """The released code's log-density of `z` [N, D]: kernels on `num_points` samples, averaged over bandwidths, each clamped first."""
        points = self._kde_points(num_points, seed, z)
        return ops.kde_log_density(z, points, bandwidths, clamp)

    def _kde_points(self, num_points: int, seed: int, like: Tensor) -> Tensor:
        """Samples for the kernel estimate; unless the prior is learned, in an order that spares kernels work, and kept for the next call."""
        key = (num_points, seed, like.dtype, like.device)
        learned = any(parameter.requires_grad for parameter in self.parameters())
        if learned or getattr(self, "_kept_points", (None,))[0] != key:
            points = self.sample(num_points, Draws(seed), dtype=like.dtype, device=like.device)
            self._kept_points = (key, points if learned else points[along_curve(points)])
        return self._kept_points[1]

    def blurred(self, width: float) -> Prior:
        """The prior with Gaussian noise of standard deviation `width` added in its own coordinates; the prior itself at 0."""
        if width == 0:
            return self
        here = next((buffer.device for buffer in self.buffers()), None)
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self._blurred(width).to(here)
        # The last few are kept, as making one may ask the device, and a step may want two; in a dictionary, so that they are no submodules.
        kept = getattr(self, "_kept_blurs", {})
        made = kept.pop((width, here), None) or self._blurred(width).to(here)
        self._kept_blurs = dict([*kept.items(), ((width, here), made)][-_KEPT_BLURS:])
        return made

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        """Nodes [M, D] and log-weights [M], float64 on the CPU, with `E_p[f(z)] ~ sum_m w_m f(z_m)`: `resolution` along an arm or edge."""
        raise NotImplementedError

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _blurred(self, width: float) -> Prior:
        raise NotImplementedError

    def _check_labels(self, labels: Tensor) -> None:
        _checks.require(self.num_classes is not None, "labels", f"None, as a {type(self).__name__} prior has no classes", labels)
        _checks.require(not labels.is_floating_point(), "labels", "integers", labels)
        if labels.device.type == "cpu" and labels.numel():
            inside = bool(labels.min() >= 0 and labels.max() < self.num_classes)
            _checks.require(inside, "labels", f"classes in [0, {self.num_classes})", f"{int(labels.min())} to {int(labels.max())}")


def pick(log_probs: Tensor, labels: Tensor | None) -> Tensor:
    """From log p(z | c) [..., C]: that of `labels` [...], or the mixture of all."""
    if labels is None:
        return torch.logsumexp(log_probs, -1) - math.log(log_probs.shape[-1])
    return log_probs.gather(-1, labels.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def uniform_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and log-weights [count] of a uniform variable on [0, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(np.log(weights / 2))


def across(resolution: int) -> int:
    """How many nodes cross an arm or edge when `resolution` lie along it."""
    return resolution // 5 + 1


def bell_nodes(count: int, reach: float) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of a standard normal, dense in its bulk and reaching `reach` deviations out: `count`, or more if too few.

    Where data speak louder than the prior, the evidence lies in the prior's tails, which Gauss-Hermite nodes never visit. These
    are even in `asinh`, where the trapezoidal rule is exact beyond what is needed once they lie half a unit apart.
    """
    count = max(count, math.ceil(4 * math.asinh(reach)) + 1)
    even = torch.linspace(-math.asinh(reach), math.asinh(reach), count, dtype=torch.float64)
    nodes = torch.sinh(even)
    return nodes, torch.log_softmax(-0.5 * nodes**2 + torch.log(torch.cosh(even)), 0)
