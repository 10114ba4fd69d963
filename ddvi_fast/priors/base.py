"""Base class of priors p(z)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast.priors.curve import along_curve
from ddvi_fast.rng import Draws

KDE_BANDWIDTHS = (0.005, 0.008, 0.01, 0.03, 0.05)  # of the released code's density estimate
KDE_POINTS = 10_000
KDE_CLAMP = 1000.0
_KEPT_BLURS = 4  # blurred priors that are cached


class Prior(nn.Module):
    """Base class of priors p(z).

    A family implements `_sample` and `_log_prob`, which get labels or None; `integration_nodes` for the evidence by quadrature; and
    `_blurred` for the annealing of the prior (`objectives.PriorGuide`).

    Attributes:
        dim: Number of latent dimensions, D.
        num_classes: Number of equally likely classes, C, or None.
    """

    dim: int
    num_classes: int | None = None

    def sample(
        self, n: int, draws: Draws | None = None, labels: Tensor | None = None, *,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> Tensor:  # fmt: skip
        """Draw samples.

        Args:
            n: Number of samples (int).
            draws: Position of the first sample in the random stream; sample `i` depends on draw `first_index + i` only. Default:
                `Draws(0)`, so two calls without it return the same samples.
            labels: Classes of the samples, int64 [n]. Default: drawn uniformly if the prior has classes.
            dtype: Data type of the samples (default float32).
            device: Device of the samples (default CPU).

        Returns:
            Samples [n, D].

        Raises:
            InputError: If `n` is negative, or if `labels` do not fit.
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
        """Draw uniform classes, int64 [n]: those of the samples that `sample` returns for the same draws.

        Raises:
            InputError: If the prior has no classes.
        """
        _checks.require(self.num_classes is not None, "labels", "a prior with classes", type(self).__name__)
        return (rng.uniform(draws, (n, 1), rng.PRIOR, device=device).squeeze(1) * self.num_classes).long().clamp(max=self.num_classes - 1)

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the log-density; it is finite and differentiable far from the support too.

        Args:
            z: Latents [..., D].
            labels: Classes, int64, broadcast to [...], for log p(z | labels). Default: log p(z).

        Returns:
            Log-densities [...] in nats.

        Raises:
            InputError: If the prior has no density, or if the arguments do not fit.
        """
        _checks.tensor(z, "z")
        _checks.require(z.shape[-1] == self.dim, "z", f"shape [..., {self.dim}]", z)
        if labels is not None:
            self._check_labels(labels)
        self.require_density()
        return self._log_prob(z, labels)

    def require_density(self) -> None:
        """Raise `InputError` if the prior has no density."""

    def log_prob_kde(
        self, z: Tensor, num_points: int = KDE_POINTS, bandwidths: Sequence[float] = KDE_BANDWIDTHS, clamp: float | None = KDE_CLAMP, seed: int = 0
    ) -> Tensor:
        """Compute the released code's estimate of the log-density, by Gaussian kernels on prior samples.

        Args:
            z: Latents [N, D].
            num_points: Number of prior samples (int, default 10,000).
            bandwidths: Standard deviations of the kernels, whose densities are averaged.
            clamp: Bound of the absolute log-density of each bandwidth (float, default 1000), or None.
            seed: Seed of the prior samples (int, default 0).

        Returns:
            Log-densities [N] in nats.
        """
        points = self._kde_points(num_points, seed, z)
        return ops.kde_log_density(z, points, bandwidths, clamp)

    def _kde_points(self, num_points: int, seed: int, like: Tensor) -> Tensor:
        """Prior samples of the kernel estimate; those of a fixed prior are cached, in an order that makes kernels fast."""
        key = (num_points, seed, like.dtype, like.device)
        learned = any(parameter.requires_grad for parameter in self.parameters())
        if learned or getattr(self, "_kept_points", (None,))[0] != key:
            points = self.sample(num_points, Draws(seed), dtype=like.dtype, device=like.device)
            self._kept_points = (key, points if learned else points[along_curve(points)])
        return self._kept_points[1]

    def blurred(self, width: float) -> Prior:
        """Return the prior with Gaussian noise added in its own coordinates (along and across an arm or edge).

        Args:
            width: Standard deviation of the noise (float). 0 returns the prior itself.
        """
        if width == 0:
            return self
        here = next((buffer.device for buffer in self.buffers()), None)
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self._blurred(width).to(here)
        # The last few are cached, since making one can synchronize the device; in a dictionary, so that they are not submodules.
        kept = getattr(self, "_kept_blurs", {})
        made = kept.pop((width, here), None) or self._blurred(width).to(here)
        self._kept_blurs = dict([*kept.items(), ((width, here), made)][-_KEPT_BLURS:])
        return made

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        """Return quadrature nodes with `E_p[f(z)] ~ sum_m w_m f(z_m)`.

        Args:
            resolution: Number of nodes along each arm, edge or dimension (int).

        Returns:
            Nodes [M, D] and log-weights [M], float64 on the CPU.
        """
        raise NotImplementedError

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _blurred(self, width: float) -> Prior:
        _checks.fail("prior", "one that can be blurred", f"a {type(self).__name__} prior", "pass guide=PriorGuide(blur=0), or implement _blurred")

    def _check_labels(self, labels: Tensor) -> None:
        _checks.require(self.num_classes is not None, "labels", f"None for a {type(self).__name__} prior, which has no classes", labels)
        _checks.require(not labels.is_floating_point(), "labels", "integers", labels)
        if labels.device.type == "cpu" and labels.numel():
            inside = bool(labels.min() >= 0 and labels.max() < self.num_classes)
            _checks.require(inside, "labels", f"classes in [0, {self.num_classes})", f"{int(labels.min())} to {int(labels.max())}")


def select_class(log_probs: Tensor, labels: Tensor | None) -> Tensor:
    """Return log p(z | labels) [...] for labels [...], or log p(z) if labels is None, given log p(z | c) [..., C] of all classes."""
    if labels is None:
        return torch.logsumexp(log_probs, -1) - math.log(log_probs.shape[-1])
    return log_probs.gather(-1, labels.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
