"""Base class of priors p(z)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast._operator import broadcast_shapes, positive_tensor
from ddvi_fast.ops import kde
from ddvi_fast.priors.curve import along_curve
from ddvi_fast.priors.quadrature import normal_grid, normal_quadrature
from ddvi_fast.rng import Draws

KDE_BANDWIDTHS = (0.005, 0.008, 0.01, 0.03, 0.05)  # of the released code's density estimate
KDE_POINTS = 10_000
KDE_CLAMP = 1000.0
_KEPT_BLURS = 4  # blurred priors that are cached


class PriorSample(NamedTuple):
    """Samples of a prior with their noise: `z` [n, D], `noise` [n, U] and `labels`, int64 [n] or None; `z` is the prior's `push` of the others."""

    z: Tensor
    noise: Tensor
    labels: Tensor | None


class Prior(nn.Module):
    """Base class of priors p(z): standard normal noise `u`, and perhaps a class, that `push` takes to latents (docs/method.md, section 7).

    A family sets `dim` and `noise_dim`, and implements

    - `_push(u, labels)`, the latents [..., D] of noise [..., U]. `labels` are int64 [...], or None for a prior without classes;
    - `_noise(n, draws, device)`, only if its noise is not drawn as standard normals of the stream `rng.PRIOR + 1`;
    - `_log_prob(z, labels)`, where `labels` may be None: log p(z);
    - `integration_nodes` for the evidence by quadrature, only if `noise_dim` exceeds 2 or if its own nodes are better;
    - `_blurred` for the annealing of the prior (`objectives.PriorGuide`).

    A prior whose noise is not normal leaves `noise_dim` at 0 and implements `_sample(n, draws, labels, device)` in place of the first two.

    Attributes:
        dim: Number of latent dimensions, D.
        noise_dim: Number of coordinates of the noise, U.
        num_classes: Number of equally likely classes, C, or None.
    """

    dim: int
    noise_dim: int = 0
    num_classes: int | None = None
    # Whether the classes divide the range of the first coordinate of the noise. `_push` then gets labels None for all classes together.
    _divides_noise = False

    @property
    def joint_noise_dim(self) -> int:
        """Number of coordinates of the noise if its first one also carries the class.

        It is `noise_dim` for priors without classes and for those whose classes divide a curve (square, swiss roll), otherwise
        `noise_dim + 1`. Class `c` has `Phi(u_0)` in `[c/C, (c+1)/C)`.
        """
        return self.noise_dim + int(self._has_class_coordinate())

    def push(self, u: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map noise to latents; it is the function that `sample` uses, and differentiable in `u` and in learned parameters.

        Args:
            u: Noise [..., noise_dim], or [..., joint_noise_dim] without labels. It is N(0, I) for latents of the prior.
            labels: Classes, int64, which broadcast with the shape [...]. Default: none, or those that the first coordinate of `u` carries;
                `z` is then piecewise constant or discontinuous in that coordinate.

        Returns:
            Latents [..., D] with the data type of `u`.

        Raises:
            InputError: If the prior does not say how it makes latents of noise, or if the arguments do not fit.

        Example:
            >>> from ddvi_fast import priors
            >>> pinwheel = priors.make("pinwheel")
            >>> pinwheel.push(torch.zeros(3, 2), torch.tensor([0, 1, 2])).shape, pinwheel.push(torch.zeros(3, 3)).shape
            (torch.Size([3, 2]), torch.Size([3, 2]))
        """
        self.require_noise()
        width = self.joint_noise_dim if labels is None else self.noise_dim
        _checks.tensor(u, "u")
        _checks.require(u.dim() >= 1 and u.shape[-1] == width, "u", f"shape [..., {width}]", u)
        if labels is not None:
            self._check_labels(labels)
            shape = broadcast_shapes(u.shape[:-1], labels.shape)
            u, labels = u.expand(*shape, -1), labels.expand(shape)
        elif self._has_class_coordinate():
            # A class is an integer, so NaN would be lost with its coordinate.
            u, labels = u[..., 1:].masked_fill(u[..., :1].isnan(), math.nan), self._carried_class(u)
        return self._push(u, labels)

    def require_noise(self) -> None:
        """Raise `InputError` if the prior has no `push`."""
        hint = "implement noise_dim and _push"
        _checks.require(self.noise_dim > 0, "prior", "one that makes latents of normal noise", f"a {type(self).__name__} prior", hint)

    def draw(
        self, n: int, draws: Draws | None = None, labels: Tensor | None = None, *, joint: bool = False,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> PriorSample:  # fmt: skip
        """Draw samples together with their noise and classes.

        Args:
            n: Number of samples (int).
            draws: Position of the first sample in the random stream; sample `i` depends on draw `first_index + i` only. Default:
                `Draws(0)`, so two calls without it return the same samples.
            labels: Classes of the samples, int64 [n]. Default: drawn uniformly if the prior has classes.
            joint: Return noise [n, joint_noise_dim], whose first coordinate carries the class (bool, default False).
            dtype: Data type of the samples and the noise (default float32).
            device: Device of the samples (default CPU).

        Returns:
            Samples [n, D], noise and classes. `z` is `push(noise, labels)`, or `push(noise)` if `joint`. The noise has no columns if the
            prior has no `push`.

        Raises:
            InputError: If `n` is negative, or if `labels` do not fit, or if `joint` for a prior without `push`.
        """
        _checks.integer(n, "n", 0)
        draws, device = Draws(0) if draws is None else draws, torch.device(device)
        if joint:
            return self._draw_joint(n, draws, labels, dtype, device)
        made = self._drawn(n, draws, dtype, device) if labels is None else None
        if made is not None:
            return made
        if labels is None and self.num_classes is not None:
            labels = self.sample_labels(n, draws, device)
        elif labels is not None:
            self._check_labels(labels)
            _checks.require(labels.shape == (n,), "labels", f"shape [{n}]", labels)
        if self.noise_dim == 0:
            z = self._sample(n, draws, labels, device).to(dtype)
            return PriorSample(z, z.new_zeros(n, 0), labels)
        # Rounded first, so that the noise belongs to the samples; mapped in float64, so that they do not depend on the batch.
        noise = self._noise(n, draws, device).to(dtype)
        return PriorSample(self._push(noise.double(), labels).to(dtype), noise, labels)

    def _drawn(self, n: int, draws: Draws, dtype: torch.dtype, device: torch.device) -> PriorSample | None:
        """The result of `draw` with classes of its own in one launch, or None where no kernel makes it."""
        return None

    def _draw_joint(self, n: int, draws: Draws, labels: Tensor | None, dtype: torch.dtype, device: torch.device) -> PriorSample:
        _checks.require(labels is None, "labels", "None with joint=True", labels)
        self.require_noise()
        noise = self._joint_noise(n, draws, device).to(dtype)
        carried = None if self.num_classes is None else self._carried_class(noise)
        return PriorSample(self.push(noise.double()).to(dtype), noise, carried)

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
        return self.draw(n, draws, labels, dtype=dtype, device=device).z

    def sample_labels(self, n: int, draws: Draws, device: torch.device | str = "cpu") -> Tensor:
        """Draw uniform classes, int64 [n]: those of the samples that `sample` returns for the same draws.

        Raises:
            InputError: If the prior has no classes.
        """
        _checks.require(self.num_classes is not None, "labels", "a prior with classes", type(self).__name__)
        return rng.integers(draws, n, self.num_classes, rng.PRIOR, device)

    def _sample_sets(self, n: int, num_sets: int, draws: Draws, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Draw several sets of samples, [num_sets, n, D]: set `s` is what `sample` returns for `draws.importance(s)`."""
        if self.noise_dim == 0 or type(self)._noise is not Prior._noise:
            return torch.stack([self.sample(n, draws.importance(number), dtype=dtype, device=device) for number in range(num_sets)])
        rows, device = (num_sets, n), torch.device(device)
        labels = None if self.num_classes is None else rng.integers(draws, rows, self.num_classes, rng.PRIOR, device)
        noise = rng.normal(draws, (*rows, self.noise_dim), rng.PRIOR + 1, device=device, dtype=dtype)
        return self._push(noise.double(), labels).to(dtype)

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

    @property
    def has_density(self) -> bool:
        """Whether the prior has a density, so that `log_prob` exists."""
        try:
            self.require_density()
        except _checks.InputError:
            return False
        return True

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
        points = self._kde_points(_checks.integer(num_points, "num_points", 1), _checks.integer(seed, "seed", 0), z)
        return kde.with_widths(z, points, bandwidths, self._kde_widths(bandwidths, z), clamp)

    def _kde_widths(self, bandwidths: Sequence[float], like: Tensor) -> Tensor:
        """The bandwidths as a tensor, which is kept."""
        if isinstance(bandwidths, Tensor):
            return positive_tensor(bandwidths, "bandwidths", like)
        key = (str(bandwidths), like.dtype, like.device)
        if getattr(self, "_kept_widths", (None,))[0] != key:
            with torch.inference_mode(False):
                self._kept_widths = (key, positive_tensor(bandwidths, "bandwidths", like))
        return self._kept_widths[1]

    def _kde_points(self, num_points: int, seed: int, like: Tensor) -> Tensor:
        """Prior samples of the kernel estimate; those of a fixed prior are cached, in an order that makes kernels fast."""
        if self._is_learned():
            return self.sample(num_points, Draws(seed), dtype=like.dtype, device=like.device)
        state = [value._version for value in (*self.parameters(), *self.buffers()) if not value.is_inference()]
        key = (num_points, seed, like.dtype, like.device, state)
        if getattr(self, "_kept_points", (None,))[0] != key:
            with torch.inference_mode(False):  # a tensor made in inference mode has no gradient later
                points = self.sample(num_points, Draws(seed), dtype=like.dtype, device=like.device).detach()
                self._kept_points = (key, points[along_curve(points)])
        return self._kept_points[1]

    def _is_learned(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def blurred(self, width: float) -> Prior:
        """Return the prior with Gaussian noise added in its own coordinates (along and across an arm or edge).

        Args:
            width: Standard deviation of the noise (float). 0 returns the prior itself.
        """
        if _checks.number(width, "width", at_least=0) == 0:
            return self
        here = next((buffer.device for buffer in self.buffers()), None)
        if self._is_learned():
            return self._blurred(width).to(here)
        # The last few are cached, since making one can synchronize the device; in a dictionary, so that they are not submodules.
        kept = getattr(self, "_kept_blurs", {})
        made = kept.pop((width, here), None)
        if made is None:
            with torch.inference_mode(False):
                made = self._blurred(width).to(here)
        self._kept_blurs = dict([*kept.items(), ((width, here), made)][-_KEPT_BLURS:])
        return made

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        """Return quadrature nodes with `E_p[f(z)] ~ sum_m w_m f(z_m)`.

        Args:
            resolution: Number of nodes along each arm, edge or dimension (int).

        Returns:
            Nodes [M, D] and log-weights [M], float64 on the CPU. Default: `push` of a grid in the noise, for each class.

        Raises:
            InputError: If the prior has no nodes of its own and more than two coordinates of noise.
        """
        self.require_noise()
        _checks.require(self.noise_dim <= 2, "prior", "at most 2 coordinates of noise, for integration nodes", str(self.noise_dim))
        grid, log_weights = normal_grid(self.noise_dim, normal_quadrature(resolution, reach=15))
        if self.num_classes is None:
            return self.push(grid).detach(), log_weights
        classes = torch.arange(self.num_classes, device="cpu").unsqueeze(1)
        return self.push(grid, classes).detach().flatten(0, 1), log_weights.repeat(self.num_classes) - math.log(self.num_classes)

    def _noise(self, n: int, draws: Draws, device: torch.device) -> Tensor:
        """Noise of `n` samples within their classes, float64 [n, U]."""
        return rng.normal(draws, (n, self.noise_dim), rng.PRIOR + 1, device=device, dtype=torch.float64)

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _joint_noise(self, n: int, draws: Draws, device: torch.device) -> Tensor:
        """Noise of `n` samples, float64 [n, joint_noise_dim], whose first coordinate also carries the class that `sample_labels` draws."""
        noise = self._noise(n, draws, device)
        if self._has_class_coordinate():
            return torch.cat((normal_of_uniform(rng.uniform(draws, (n, 1), rng.PRIOR, device=device)), noise), 1)
        if self.num_classes is None:
            return noise
        position = (self.sample_labels(n, draws, device).unsqueeze(1) + torch.special.ndtr(noise[:, :1])) / self.num_classes
        return torch.cat((torch.special.ndtri(position), noise[:, 1:]), 1)

    def _has_class_coordinate(self) -> bool:
        """Whether the joint noise has one more coordinate, for the class."""
        return self.num_classes is not None and self.noise_dim > 0 and not self._divides_noise

    def _carried_class(self, u: Tensor) -> Tensor:
        """The class [...] that the first coordinate of `u` [..., joint_noise_dim] carries; in float64, the same for every data type of `u`."""
        return self._class_at(torch.special.ndtr(u[..., 0].double()))

    def _class_at(self, position: Tensor) -> Tensor:
        """The class [...] of a position in [0, 1]."""
        return (position * self.num_classes).long().clamp(0, self.num_classes - 1)

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _blurred(self, width: float) -> Prior:
        _checks.fail("prior", "one that can be blurred", f"a {type(self).__name__} prior", "pass guide=PriorGuide(blur=0), or implement _blurred")

    def _check_labels(self, labels: Tensor) -> None:
        _checks.require(self.num_classes is not None, "labels", f"None for a {type(self).__name__} prior, which has no classes", labels)
        _checks.require(not labels.is_floating_point(), "labels", "integers", labels)
        if _checks.readable(labels) and labels.numel():
            low, high = (int(end) for end in torch.aminmax(labels))
            _checks.require(low >= 0 and high < self.num_classes, "labels", f"classes in [0, {self.num_classes})", f"{low} to {high}")


def select_class(log_probs: Tensor, labels: Tensor | None) -> Tensor:
    """Return log p(z | labels) [...] for labels [...], or log p(z) if labels is None, given log p(z | c) [..., C] of all classes."""
    if labels is None:
        return torch.logsumexp(log_probs, -1) - math.log(log_probs.shape[-1])
    return log_probs.gather(-1, labels.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def normal_of_uniform(uniform: Tensor) -> Tensor:
    """Return the standard normals, in float64, whose cumulative probabilities are the uniforms of `rng.uniform`, some of which round to 1."""
    return torch.special.ndtri(uniform.double().clamp(max=1 - 2**-25))


def curve_noise(n: int, draws: Draws, device: torch.device) -> Tensor:
    """Noise, float64 [n, 3], of a prior along a curve: position within the class, from a uniform of its own stream, and two standard normals."""
    position = normal_of_uniform(rng.uniform(draws, (n, 1), rng.PRIOR + 1, device=device))
    return torch.cat((position, rng.normal(draws, (n, 2), rng.PRIOR + 2, device=device, dtype=torch.float64)), 1)
