"""Noise schedules and their coefficient tables (docs/method.md, section 1), computed in float64 and used in float32.

A schedule is the noising process `r(y_t | y_{t-1}) = N(sqrt(alpha_t) y_{t-1}, beta_t I)`. Variance preserving (VP) sets
`alpha_t = 1 - beta_t`; variance exploding (VE) sets `alpha_t = 1`, so that `beta_t` is the variance that step `t` adds. Arrays are
0-based: entry `i` is step `t = i + 1`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.precision import as_float64

PARAMETRISATIONS = ("eps", "x0", "v", "mean", "increment")


def _cached(table: Callable) -> Callable:
    """Cache a method's results on a schedule that is not learned: every training step needs the same few tables."""

    @functools.wraps(table)
    def asked(self: NoiseSchedule, *arguments: Any, **named: Any) -> Any:
        # A tensor made in inference mode cannot be used for a later gradient; a compiler cannot trace the cache.
        if torch.compiler.is_compiling() or self.betas.requires_grad or torch.is_inference_mode_enabled():
            return table(self, *arguments, **named)
        key = (table.__name__, arguments, tuple(sorted(named.items())))
        if key not in self._tables:
            self._tables[key] = table(self, *arguments, **named)
        return self._tables[key]

    return asked


def _kept(values: Callable[[NoiseSchedule], Tensor]) -> cached_property:
    """A cached property, which is never a tensor of inference mode."""

    @functools.wraps(values)
    def computed(self: NoiseSchedule) -> Tensor:
        if not torch.is_inference_mode_enabled():
            return values(self)
        with torch.inference_mode(False):
            return values(self)

    return cached_property(computed)


@dataclass(frozen=True)
class NoiseSchedule:
    """A noising process of `T` steps.

    Args:
        betas: Variance that each step adds, float64 [T].
        kind: ``vp`` (the signal shrinks as noise grows) or ``ve`` (the signal stays as it is) (default ``vp``).

    Example:
        >>> schedule = make("cosine", 20)
        >>> schedule.coefficients("v").shape
        torch.Size([20, 5])
    """

    betas: Tensor
    kind: str = "vp"

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return self.betas.shape[0]

    @cached_property
    def _tables(self) -> dict[tuple, Any]:
        return {}

    @_kept
    def alphas(self) -> Tensor:
        """Squared factor by which a step scales its input, [T]."""
        return 1 - self.betas if self.kind == "vp" else torch.ones_like(self.betas)

    @_kept
    def alpha_bars(self) -> Tensor:
        """Product of the alphas so far, [T]: the squared factor of `y_0` in `y_t`."""
        return torch.cumprod(self.alphas, 0)

    @_kept
    def noise_variances(self) -> Tensor:
        """Variance of `y_t` given `y_0`, [T]; `1 - alpha_bar` for VP."""
        return 1 - self.alpha_bars if self.kind == "vp" else torch.cumsum(self.betas, 0)

    @_kept
    def posterior_variances(self) -> Tensor:
        """Variance of `r(y_{t-1} | y_t, y_0)`, [T]; zero at the first step."""
        return _before(self.noise_variances, 0.0) / self.noise_variances * self.betas

    @_cached
    def posterior_mean_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of `y_0` and of `y_t` in the mean of `r(y_{t-1} | y_t, y_0)`, both [T]."""
        previous_signal = _before(self.alpha_bars, 1.0).sqrt()
        previous_noise = _before(self.noise_variances, 0.0)
        return previous_signal * self.betas / self.noise_variances, self.alphas.sqrt() * previous_noise / self.noise_variances

    @_cached
    def _noising(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Signal and deviation of `y_t` given `y_0`, both [T]."""
        return self.alpha_bars.sqrt().to(dtype), self.noise_variances.sqrt().to(dtype)

    @_cached
    def _posterior_mean_table(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The `posterior_mean_weights` as the columns of a table, [T, 2]."""
        return torch.stack(self.posterior_mean_weights(), dim=1).to(dtype)

    def terminal_snr(self) -> Tensor:
        """Signal-to-noise ratio `alpha_bar_T / var(y_T | y_0)`, a scalar."""
        return self.alpha_bars[-1] / self.noise_variances[-1]

    def prediction_weights(self, parametrisation: str, eta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Weights of the mean `m_t = A_t y_t + B_t o` of a step of the chain, where `o` is the network's output.

        Args:
            parametrisation: What the network predicts: ``eps``, ``x0``, ``v``, ``mean``, or ``increment``, what the mean has beyond
                `sqrt(alpha_t) y_t` (docs/method.md, section 7).
            eta: 1 for ancestral sampling, 0 for the deterministic chain (default 1).

        Returns:
            `A` and `B`, both float64 [T].
        """
        _checks.choice(parametrisation, PARAMETRISATIONS, "parametrisation")
        if parametrisation == "increment":
            return self.alphas.sqrt(), torch.ones_like(self.betas)
        signal, noise = self.alpha_bars.sqrt(), self.noise_variances.sqrt()
        previous_signal = _before(self.alpha_bars, 1.0).sqrt()
        remaining = _before(self.noise_variances, 0.0) - eta**2 * self.posterior_variances
        # A square root has no finite gradient at 0, the value at step 1, where no variance remains.
        direction = torch.where(remaining > 0, remaining, 1.0).sqrt() * (remaining > 0)
        if parametrisation == "eps":
            return previous_signal / signal, direction - previous_signal * noise / signal
        if parametrisation == "x0":
            return direction / noise, previous_signal - direction * signal / noise
        if parametrisation == "v":
            norm = signal**2 + noise**2  # 1 for VP
            return (previous_signal * signal + direction * noise) / norm, (direction * signal - previous_signal * noise) / norm
        return torch.zeros_like(signal), torch.ones_like(signal)

    @_cached
    def coefficients(
        self, parametrisation: str = "eps", eta: float = 1.0, final_variance: float | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The chain's table [T, 5] with columns `A`, `B`, `s`, `sqrt(alpha)`, `beta` (docs/method.md, section 1).

        Args:
            parametrisation: What the denoiser predicts: ``eps``, ``x0``, ``v``, ``mean`` or ``increment`` (default ``eps``). The steps of
                ``increment`` have the variances `beta_t`, those of a stationary process, in place of `eta` and `final_variance`.
            eta: Number in [0, 1]: 1 for ancestral sampling, 0 for the deterministic chain, which has no density (default 1).
            final_variance: Variance `s_1^2` of the last step, which `eta` alone would make 0 (default None: the posterior variance of step 2).
            dtype: Element type of the table (default float32); it is computed in float64.

        Returns:
            The table [T, 5].

        Raises:
            InputError: `eta` is outside [0, 1], the parametrisation is unknown, or a deterministic chain has a final variance.
        """
        _checks.require(0.0 <= eta <= 1.0, "eta", "a number in [0, 1]", eta)
        weight_state, weight_output = self.prediction_weights(parametrisation, eta)
        if parametrisation == "increment":
            _checks.require(eta == 1 and final_variance is None, "eta, final_variance", "1 and None with increment", (eta, final_variance))
            return torch.stack((weight_state, weight_output, self.betas.sqrt(), self.alphas.sqrt(), self.betas), dim=1).to(dtype)
        variances = eta**2 * self.posterior_variances
        if eta > 0:
            _checks.require(final_variance is None or final_variance > 0, "final_variance", "a positive number", final_variance)
            last = self.posterior_variances[1:2] if final_variance is None else self.betas.new_full((1,), final_variance)
            variances = torch.cat((last, variances[1:]))
        else:
            _checks.require(final_variance is None, "final_variance", "None when eta = 0 (that chain has no density)", final_variance)
        # The first variance of a deterministic chain is exactly 0; sqrt there is never differentiated.
        deviations = variances.sqrt() if eta > 0 else torch.zeros_like(variances)
        return torch.stack((weight_state, weight_output, deviations, self.alphas.sqrt(), self.betas), dim=1).to(dtype)

    def target(self, parametrisation: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Output that a denoiser should give for `y_t = a x0 + s noise`.

        Args:
            parametrisation: What the denoiser predicts: ``eps``, ``x0``, ``v`` or ``mean``.
            x0: Latents [N, D].
            noise: Standard normals [N, D].
            t: 0-based timesteps, int64 [N].

        Returns:
            The target [N, D].
        """
        weight_x0, weight_noise = (column[t].to(x0).unsqueeze(-1) for column in self.target_weights(parametrisation))
        return weight_x0 * x0 + weight_noise * noise

    def target_weights(self, parametrisation: str) -> tuple[Tensor, Tensor]:
        """`c0` and `c1` of the target `c0_t x0 + c1_t noise` of a denoiser at `y_t`, both float64 [T]."""
        _checks.choice(parametrisation, PARAMETRISATIONS, "parametrisation")
        signal, deviation = self.alpha_bars.sqrt(), self.noise_variances.sqrt()
        if parametrisation == "eps":
            return torch.zeros_like(signal), torch.ones_like(signal)
        if parametrisation == "x0":
            return torch.ones_like(signal), torch.zeros_like(signal)
        if parametrisation == "v":
            return -deviation, signal
        weight_x0, weight_state = self.posterior_mean_weights()
        if parametrisation == "increment":
            weight_state = weight_state - self.alphas.sqrt()
        return weight_x0 + weight_state * signal, weight_state * deviation

    @_cached
    def regression_table(self, parametrisation: str, weight: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Table of the sleep term's regression: columns signal, deviation, `c0`, `c1` of `target_weights`, and `weight` at every step.

        The regression noises `x0` to `y_t = signal_t x0 + deviation_t eps`; with the error `e` of the denoiser's output against
        `c0_t x0 + c1_t eps`, its loss is `weight_t sum_d rho(e_d)` (docs/method.md, section 3).

        Args:
            parametrisation: What the denoiser predicts: ``eps``, ``x0``, ``v`` or ``mean``.
            weight: Weight of every step (default 1).
            dtype: Element type of the table (default float32).

        Returns:
            The table [T, 5].

        Example:
            >>> make("cosine", 20).regression_table("v").shape
            torch.Size([20, 5])
        """
        signal, deviation = self.alpha_bars.sqrt(), self.noise_variances.sqrt()
        return torch.stack((signal, deviation, *self.target_weights(parametrisation), torch.full_like(signal, weight)), dim=1).to(dtype)

    def divergence_table(self, parametrisation: str, eta: float, deviations: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Table and constants with which squared errors of the regression become step divergences in nats.

        With `m = A y_t + B o` the mean of `q(y_{t-1} | y_t, x)`, `s` its deviation, and `w_0 x0 + w_y y_t` and `v` the mean and the variance
        of `r(y_{t-1} | y_t, x0)`,

            T KL(r || q) + T H(r) = T sum_d [ (w_0 x0 + w_y y_t - m)^2 / (2 s^2) + v / (2 s^2) + log s + log(2 pi) / 2 ]

        is a squared error of `o` against `(w_0 x0 + (w_y - A) y_t) / B` of weight `T B^2 / (2 s^2)`, plus D times a constant of the step.
        Gradients reach `A`, `B` and `s`, the chain's half of a learned schedule, and not the noising process.

        Args:
            parametrisation: What the denoiser predicts: ``eps``, ``x0``, ``v`` or ``mean``.
            eta: 1 for ancestral sampling, 0 for the deterministic chain.
            deviations: Standard deviations `s` of the chain's steps, [T].
            dtype: Element type of the results (default float32).

        Returns:
            The table [T, 5], with the columns of `regression_table`, and the constants [T].
        """
        noising = self.detach()
        signal, deviation = noising.alpha_bars.sqrt(), noising.noise_variances.sqrt()
        weight_x0, weight_state = noising.posterior_mean_weights()
        scale_state, scale_output = self.prediction_weights(parametrisation, eta)
        deviations = deviations.double()
        left = (weight_state - scale_state) / scale_output
        precision = 0.5 * self.num_steps / deviations.square()
        columns = (signal, deviation, weight_x0 / scale_output + left * signal, left * deviation, precision * scale_output.square())
        constant = precision * noising.posterior_variances + self.num_steps * (torch.log(deviations) + 0.5 * math.log(2 * math.pi))
        return torch.stack(columns, dim=1).to(dtype), constant.to(dtype)

    def at(self, steps: Tensor) -> NoiseSchedule:
        """The coarser schedule of some steps only, with the same accumulated noise at each; `steps` are 0-based, int64 and increasing."""
        if self.kind == "ve":
            variances = self.noise_variances[steps]
            return NoiseSchedule(variances - _before(variances, 0.0), self.kind)
        signals = self.alpha_bars[steps]
        return NoiseSchedule(1 - signals / _before(signals, 1.0), self.kind)

    def detach(self) -> NoiseSchedule:
        """The same schedule without gradients."""
        return NoiseSchedule(self.betas.detach(), self.kind) if self.betas.requires_grad else self

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.betas.to(device), self.kind)


class LearnedSchedule(nn.Module):
    """A schedule whose betas are trained through the bound: `beta_t = sigmoid(raw_t)` for VP, `exp(raw_t)` for VE.

    Calling the module returns a `NoiseSchedule` that carries gradients. It starts as `initial`.
    """

    @_checks.typed
    def __init__(self, initial: NoiseSchedule) -> None:
        super().__init__()
        self.kind = initial.kind
        raw = torch.logit(initial.betas) if self.kind == "vp" else torch.log(initial.betas)
        self.raw = nn.Parameter(raw.float())

    def forward(self) -> NoiseSchedule:
        return NoiseSchedule(learned_betas(self.raw, self.kind), self.kind)


def learned_betas(raw: Tensor, kind: str) -> Tensor:
    """Return the betas of a `LearnedSchedule` of a kind, ``vp`` or ``ve``: float64 [T], from its parameters [T]."""
    return torch.sigmoid(raw.double()) if kind == "vp" else torch.exp(raw.double())


def make(name: str, num_steps: int, *, kind: str = "vp", rescale: bool = False, **options: float) -> NoiseSchedule:
    """Make a schedule by name.

    Args:
        name: ``constant`` (option beta), ``linear``, ``quadratic``, ``sigmoid`` (options start, end), ``cosine`` (option offset) or
            ``geometric`` (options start, end: the ratio of noise to signal after the first and the last step).
        num_steps: Number of steps T, at least 2.
        kind: ``vp`` or ``ve`` (default ``vp``); for VE the named shape gives the variance that each step adds.
        rescale: Whether the final signal-to-noise ratio is, for any T, the one of the named schedule with 1,000 steps (default False).
        options: Options of the named schedule.

    Returns:
        The schedule, with float64 betas [T].

    Raises:
        InputError: A name, option or kind is unknown, `num_steps` is below 2, or a beta is outside (0, 1).

    Example:
        >>> [round(float(make("linear", steps, rescale=True).terminal_snr()), 7) for steps in (5, 50)]
        [4.04e-05, 4.04e-05]
    """
    _checks.choice(name, _SHAPES, "schedule")
    _checks.choice(kind, ("vp", "ve"), "kind")
    num_steps = _checks.integer(num_steps, "num_steps", at_least=2)
    shape = _SHAPES[name]
    rescale = _checks.flag(rescale, "rescale")
    options = {option: _checks.number(value, option) for option, value in options.items()}
    for option in options:
        _checks.choice(option, list(inspect.signature(shape).parameters)[1:], f"option of the {name} schedule")
    schedule = _validated(shape(num_steps, **options), kind)
    return _resampled(_validated(shape(_REFERENCE_STEPS, **options), kind), num_steps) if rescale else schedule


_REFERENCE_STEPS = 1000


def _validated(betas: Tensor, kind: str) -> NoiseSchedule:
    inside = (betas > 0).all() and (kind == "ve" or (betas < 1).all())
    _checks.require(bool(inside), "betas", "values in (0, 1)" if kind == "vp" else "positive values", betas.tolist()[:3])
    return NoiseSchedule(betas, kind)


def _resampled(fine: NoiseSchedule, num_steps: int) -> NoiseSchedule:
    """A schedule with the accumulated noise of a fine one at `num_steps` evenly spaced times."""
    accumulated = -fine.alpha_bars.log() if fine.kind == "vp" else fine.noise_variances
    times = torch.linspace(0, 1, num_steps + 1, **as_float64)[1:] * fine.num_steps
    upper = times.ceil().long().clamp(1, fine.num_steps)
    padded = torch.cat((accumulated.new_zeros(1), accumulated))
    read = torch.lerp(padded[upper - 1], padded[upper], times - (upper - 1))
    steps = read - _before(read, 0.0)
    return NoiseSchedule(-torch.expm1(-steps) if fine.kind == "vp" else steps, fine.kind)


def _before(values: Tensor, first: float) -> Tensor:
    """Values shifted by one step, with `first` at the first step."""
    return torch.cat((values.new_full((1,), first), values[:-1]))


def _constant(num_steps: int, beta: float = 0.02) -> Tensor:
    return torch.full((num_steps,), beta, **as_float64)


def _linear(num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    return torch.linspace(start, end, num_steps, **as_float64)


def _quadratic(num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    return torch.linspace(math.sqrt(start), math.sqrt(end), num_steps, **as_float64) ** 2


def _sigmoid(num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, num_steps, **as_float64)) * (end - start) + start


def _cosine(num_steps: int, offset: float = 0.008) -> Tensor:
    """Squared-cosine signal (Nichol and Dhariwal 2021), betas kept in [1e-4, 0.9999]."""
    times = torch.linspace(0, 1, num_steps + 1, **as_float64)
    signal = torch.cos((times + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(1e-4, 0.9999)


def _geometric(num_steps: int, start: float = 0.005, end: float = 0.7) -> Tensor:
    """Noise-to-signal ratios that grow geometrically from `start` to `end`: the same number of steps for every octave."""
    ratios = torch.logspace(math.log10(start), math.log10(end), num_steps, **as_float64)
    signal = 1 / (1 + ratios**2)
    return 1 - signal / _before(signal, 1.0)


_SHAPES = {shape.__name__.removeprefix("_"): shape for shape in (_constant, _linear, _quadratic, _sigmoid, _cosine, _geometric)}
