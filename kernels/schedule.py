"""Tables of a learned noise schedule in Triton: the chain's and the regression's in one launch, their gradients in another, all in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import ScheduleSpec
from ddvi_fast.kernels.common import Compilation, launch, next_power_of_2, recorded

MOST_STEPS = 1024  # one program has all steps


def forward(raw: Tensor, factors: Tensor | None, spec: ScheduleSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The chain's table [T, 5], that of the divergences [T, 5] and their constants [T] (`NoiseSchedule.divergence_table`).

    Args:
        raw: Parameters of `LearnedSchedule`, [T].
        factors: Logarithms of the factors on the variances, [T], or None.
        spec: Kind, parametrisation, eta and final variance.
    """
    steps = len(raw)
    table, divergence, constants = (raw.new_empty(shape) for shape in ((steps, 5), (steps, 5), steps))
    launch(schedule_fwd_kernel, (1,), raw, factors, table, divergence, constants, steps, **_options(steps, spec))
    return table, divergence, constants


def backward(
    d_table: Tensor | None, d_divergence: Tensor | None, d_constants: Tensor | None, raw: Tensor, factors: Tensor | None, spec: ScheduleSpec
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `raw` and `factors`; those of the results may be missing."""
    d_raw, d_factors = torch.empty_like(raw), None if factors is None else torch.empty_like(factors)
    call = d_table, d_divergence, d_constants, raw, factors, d_raw, d_factors, len(raw)
    launch(schedule_bwd_kernel, (1,), *call, **_options(len(raw), spec))
    return d_raw, d_factors


def compilations() -> Iterator[Compilation]:
    """The default recipe's five steps, and a long chain that predicts the noise."""
    for steps, spec in ((5, ScheduleSpec("vp", "increment", 1.0, None)), (1000, ScheduleSpec("vp", "eps", 1.0, None))):
        raw, table = torch.empty(steps, device="meta"), torch.empty(steps, 5, device="meta")
        name = f"T {steps} {spec.parametrisation}"
        yield from recorded(name, forward, raw, raw, spec)
        yield from recorded(name, backward, table, table, raw, raw, raw, spec)


def _options(steps: int, spec: ScheduleSpec) -> dict[str, object]:
    block = max(16, next_power_of_2(steps))
    final = -1.0 if spec.final_variance is None else float(spec.final_variance)
    names = {"KIND": spec.kind, "PREDICTS": spec.parametrisation, "ETA": float(spec.eta), "FINAL": final}
    return {**names, "BLOCK": block, "num_warps": max(1, min(16, block // 64))}


@triton.jit
def _exact(number: tl.constexpr):
    """A number in float64: beside a tensor it would be rounded to float32."""
    return tl.full((1,), number, tl.float64)


@triton.jit
def _process(raw, step, steps, KIND: tl.constexpr):
    """Betas, alphas, alpha_bar and variances of the noising process with those of the step before, all [BLOCK]."""
    value = tl.load(raw + step, step < steps, -4.0).to(tl.float64)  # beyond the last step any schedule will do
    if KIND == "vp":
        beta = _exact(1.0) / (_exact(1.0) + tl.exp(-value))
        alpha = _exact(1.0) - beta
        signal = tl.cumprod(alpha, 0)
        signal_before = signal / alpha
        return beta, alpha, signal, signal_before, _exact(1.0) - signal, _exact(1.0) - signal_before
    else:
        beta = tl.exp(value)
        one = beta * _exact(0.0) + _exact(1.0)
        noise = tl.cumsum(beta, 0)
        return beta, one, one, one, noise, noise - beta


@triton.jit
def _mean_weights(alpha, signal, signal_before, noise, noise_before, posterior, PREDICTS: tl.constexpr, ETA: tl.constexpr):
    """`A` and `B` of the mean of a step, and the factor of the direction (`NoiseSchedule.prediction_weights`)."""
    zero = alpha * _exact(0.0)
    remaining = noise_before - _exact(ETA * ETA) * posterior
    direction = tl.where(remaining > 0, tl.sqrt(tl.where(remaining > 0, remaining, _exact(1.0))), zero)
    s, n, p = tl.sqrt(signal), tl.sqrt(noise), tl.sqrt(signal_before)
    if PREDICTS == "increment":
        return tl.sqrt(alpha), zero + _exact(1.0), direction
    elif PREDICTS == "eps":
        return p / s, direction - p * n / s, direction
    elif PREDICTS == "x0":
        return direction / n, p - direction * s / n, direction
    elif PREDICTS == "v":
        norm = signal + noise
        return (p * s + direction * n) / norm, (direction * s - p * n) / norm, direction
    else:
        return zero, zero + _exact(1.0), direction


@triton.jit
def _variances(step, beta, posterior, PREDICTS: tl.constexpr, ETA: tl.constexpr, FINAL: tl.constexpr):
    """Variances of the chain's steps before the learned factors; that of the last step is the one of the second or given."""
    if PREDICTS == "increment":
        return beta
    else:
        last = tl.sum(tl.where(step == 1, posterior, _exact(0.0)), axis=0)
        if FINAL > 0:
            last = last * 0.0 + tl.full((), FINAL, tl.float64)
        return tl.where(step == 0, last, _exact(ETA * ETA) * posterior)


@triton.jit
def _factor(factors, step, steps):
    """Learned factors of the deviations."""
    if factors is not None:
        return tl.exp(_exact(0.5) * tl.load(factors + step, step < steps, 0.0).to(tl.float64))
    else:
        return _exact(1.0)


@triton.jit
def _store(place, value, there):
    tl.store(place, value.to(tl.float32), there)


@triton.jit(do_not_specialize=["steps"])
def schedule_fwd_kernel(
    raw, factors,  # [T]
    table, divergence,  # [T, 5]
    constants,  # [T]
    steps, KIND: tl.constexpr, PREDICTS: tl.constexpr, ETA: tl.constexpr, FINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    step = tl.arange(0, BLOCK)
    there = step < steps
    beta, alpha, signal, signal_before, noise, noise_before = _process(raw, step, steps, KIND)
    posterior = noise_before / noise * beta
    of_state, of_output, _ = _mean_weights(alpha, signal, signal_before, noise, noise_before, posterior, PREDICTS, ETA)
    deviation = tl.sqrt(_variances(step, beta, posterior, PREDICTS, ETA, FINAL)) * _factor(factors, step, steps)
    root = tl.sqrt(alpha)
    _store(table + 5 * step, of_state, there)
    _store(table + 5 * step + 1, of_output, there)
    _store(table + 5 * step + 2, deviation, there)
    _store(table + 5 * step + 3, root, there)
    _store(table + 5 * step + 4, beta, there)
    s, n = tl.sqrt(signal), tl.sqrt(noise)
    left = (root * noise_before / noise - of_state) / of_output
    count = (step * 0 + steps).to(tl.float64)
    precision = _exact(0.5) * count / (deviation * deviation)
    _store(divergence + 5 * step, s, there)
    _store(divergence + 5 * step + 1, n, there)
    _store(divergence + 5 * step + 2, tl.sqrt(signal_before) * beta / noise / of_output + left * s, there)
    _store(divergence + 5 * step + 3, left * n, there)
    _store(divergence + 5 * step + 4, precision * of_output * of_output, there)
    entropy = count * (tl.log(deviation) + _exact(0.9189385332046727))
    _store(constants + step, precision * posterior + entropy, there)


@triton.jit
def _upstream(gradients, place, there):
    """Gradients in float64, zero where there are none."""
    if gradients is not None:
        return tl.load(gradients + place, there, 0.0).to(tl.float64)
    else:
        return place * _exact(0.0)


@triton.jit(do_not_specialize=["steps"])
def schedule_bwd_kernel(
    d_table, d_divergence,  # [T, 5] or None
    d_constants,  # [T] or None
    raw, factors, d_raw, d_factors,  # [T]
    steps, KIND: tl.constexpr, PREDICTS: tl.constexpr, ETA: tl.constexpr, FINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The derivatives of each quantity in turn, from the tables back to the betas. Nothing of the noising process has a gradient through
    the divergences, whose own weights `A`, `B` and `s` have."""
    step = tl.arange(0, BLOCK)
    there = step < steps
    zero, half, eta2 = step * _exact(0.0), _exact(0.5), _exact(ETA * ETA)
    beta, alpha, signal, signal_before, noise, noise_before = _process(raw, step, steps, KIND)
    posterior = noise_before / noise * beta
    of_state, of_output, direction = _mean_weights(alpha, signal, signal_before, noise, noise_before, posterior, PREDICTS, ETA)
    factor = _factor(factors, step, steps)
    variance = _variances(step, beta, posterior, PREDICTS, ETA, FINAL)
    deviation = tl.sqrt(variance) * factor
    s, n, p, root = tl.sqrt(signal), tl.sqrt(noise), tl.sqrt(signal_before), tl.sqrt(alpha)
    count = (step * 0 + steps).to(tl.float64)

    # The divergences.
    d2, d3 = _upstream(d_divergence, 5 * step + 2, there), _upstream(d_divergence, 5 * step + 3, there)
    d4, d_constant = _upstream(d_divergence, 5 * step + 4, there), _upstream(d_constants, step, there)
    left = (root * noise_before / noise - of_state) / of_output
    precision = half * count / (deviation * deviation)
    to_left = d2 * s + d3 * n
    to_precision = d4 * of_output * of_output + d_constant * posterior
    to_state = _upstream(d_table, 5 * step, there) - to_left / of_output
    to_output = _upstream(d_table, 5 * step + 1, there) + _exact(2.0) * d4 * precision * of_output
    to_output -= (d2 * p * beta / noise / of_output + to_left * left) / of_output
    to_deviation = _upstream(d_table, 5 * step + 2, there) + (d_constant * count - _exact(2.0) * to_precision * precision) / deviation

    # The chain's table.
    if d_factors is not None:
        _store(d_factors + step, half * to_deviation * deviation, there)
    to_variance = half * to_deviation * factor / tl.sqrt(variance)
    to_root, to_beta = _upstream(d_table, 5 * step + 3, there), _upstream(d_table, 5 * step + 4, there)
    to_s, to_n, to_p, to_direction, to_posterior = zero, zero, zero, zero, zero
    if PREDICTS == "increment":
        to_root += to_state
        to_beta += to_variance
    else:
        to_posterior = tl.where(step > 0, eta2 * to_variance, zero)
        if FINAL <= 0:
            first = tl.sum(tl.where(step == 0, to_variance, zero), axis=0)
            to_posterior += tl.where(step == 1, first, zero)
    if PREDICTS == "eps":
        to_p, to_direction = (to_state - to_output * n) / s, to_output
        to_n = -to_output * p / s
        to_s = (to_output * p * n / s - to_state * of_state) / s
    elif PREDICTS == "x0":
        to_p, to_direction = to_output, (to_state - to_output * s) / n
        to_s = -to_output * direction / n
        to_n = (to_output * direction * s / n - to_state * of_state) / n
    elif PREDICTS == "v":
        norm = signal + noise
        both = _exact(2.0) * (to_state * of_state + to_output * of_output)
        to_p, to_direction = (to_state * s - to_output * n) / norm, (to_state * n + to_output * s) / norm
        to_s = (to_state * p + to_output * direction - both * s) / norm
        to_n = (to_state * direction - to_output * p - both * n) / norm

    # The noising process.
    to_remaining = tl.where(direction > 0, half * to_direction / tl.where(direction > 0, direction, _exact(1.0)), zero)
    to_posterior -= eta2 * to_remaining
    to_noise_before = to_remaining + to_posterior * beta / noise
    to_noise = half * to_n / n - to_posterior * posterior / noise
    to_beta += to_posterior * noise_before / noise
    if KIND == "vp":
        from_signal = signal * (half * to_s / s - to_noise)
        from_before = signal_before * (half * to_p / p - to_noise_before)
        along = tl.cumsum(tl.where(there, from_signal + from_before, zero), 0, reverse=True) - from_before
        to_beta -= half * to_root / root + along / alpha
        to_raw = to_beta * beta * alpha
    else:
        to_beta += tl.cumsum(tl.where(there, to_noise + to_noise_before, zero), 0, reverse=True) - to_noise_before
        to_raw = to_beta * beta
    _store(d_raw + step, to_raw, there)
