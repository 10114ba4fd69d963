"""The denoising chain: sampling with its path log-ratio, and the sleep term's denoising loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ddvi_fast import _backend, _checks
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops.noise import add_noise, check_latents, check_noise
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import NoiseSchedule

LOSSES = ("squared", "absolute", "huber")


class ChainSample(NamedTuple):
    """What a run of the chain gives: `z` [.., N, D], `path` [.., N] or None, `trajectory` [T + 1, .., N, D] or None, start first."""

    z: Tensor
    path: Tensor | None
    trajectory: Tensor | None


def sample_chain(
    y_T: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    coefficients: Tensor,
    *,
    draws: Draws | None = None,
    noise: Tensor | None = None,
    return_trajectory: bool = False,
) -> ChainSample:
    """Run all `T` denoising steps from `y_T` to `z`, adding up the path log-ratio (METHOD sections 1 and 2).

    Args:
        y_T: start [.., N, D]; with a grouped denoiser [G, .., N, D].
        context: [.., N, C], broadcast against the rows of `y_T`; None for a denoiser without context.
        denoiser: the network of the chain.
        coefficients: table [T, 5] of `NoiseSchedule.coefficients`.
        draws: where the rows stand in the run; step `i` draws from stream `CHAIN + i`.
        noise: standard normals [T, .., N, D] instead of `draws`; entry `i` is for 0-based step `i`.
            Without either the chain is deterministic: its table must have `eta = 0`, and `path` is None.
        return_trajectory: also return every state.

    Returns:
        `ChainSample(z, path, trajectory)`; `path` in nats.

    Raises:
        InputError: shapes that do not fit, `draws` for a deterministic table, or none for a stochastic one.

    Example:
        >>> from ddvi_fast import denoisers, rng, schedules
        >>> denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=0, num_steps=10)
        >>> table = schedules.make("cosine", 10).coefficients("v")
        >>> sample = sample_chain(torch.zeros(5, 2), None, denoiser, table, draws=rng.Draws(0))
        >>> sample.z.shape, sample.path.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    _check_chain(y_T, context, denoiser, coefficients)
    stochastic = draws is not None or noise is not None
    _check_source(coefficients, stochastic)
    num_steps, weights = coefficients.shape[0], denoiser.chain_weights()
    flat = _flattener(y_T.shape, weights.grouped)
    spread = None if context is None else flat(_spread(context, y_T.shape[:-1]))
    inputs, wanted = (flat(y_T), spread, weights, coefficients.to(y_T)), {"return_trajectory": return_trajectory}
    kernel = _backend.operation("chain", *inputs)
    if stochastic:
        check_noise(noise, draws, (num_steps, *y_T.shape))
    if draws is not None:
        z, path, trajectory = kernel.sample_chain_from_draws(*inputs, draws, tuple(y_T.shape[:-1]), denoiser.residual, **wanted)
    else:
        flat_noise = None if noise is None else torch.stack([flat(step) for step in noise])
        z, path, trajectory = kernel.sample_chain(*inputs, flat_noise, denoiser.residual, **wanted)
    return ChainSample(
        z.reshape(y_T.shape),
        None if path is None else path.reshape(y_T.shape[:-1]),
        trajectory.reshape(num_steps + 1, *y_T.shape) if return_trajectory else None,
    )


def trajectory_log_ratio(trajectory: Tensor, context: Tensor | None, denoiser: ResidualMLP, coefficients: Tensor) -> Tensor:
    """The path log-ratio [.., N] in nats of a given trajectory [T + 1, .., N, D], start first (METHOD section 2).

    The states are data here: gradients reach the denoiser only through its density, and the states only through the
    formula. A doubly reparametrised gradient (Tucker et al. 2019) needs just that. The denoiser must not be grouped.
    """
    _checks.tensor(trajectory, "trajectory")
    fits = trajectory.dim() >= 3 and trajectory.shape[0] == denoiser.num_steps + 1
    _checks.require(fits, "trajectory", f"shape [{denoiser.num_steps + 1}, .., N, {denoiser.latent_dim}]", trajectory)
    _check_chain(trajectory[0], context, denoiser, coefficients)
    _check_source(coefficients, True)
    weights = denoiser.chain_weights()
    _checks.require(not weights.grouped, "denoiser", "one without groups", f"{denoiser.groups} groups")
    rows = trajectory.shape[1:-1]
    spread = None if context is None else _spread(context, rows).reshape(-1, context.shape[-1])
    flat = trajectory.reshape(trajectory.shape[0], -1, trajectory.shape[-1])
    kernel = _backend.operation("chain", flat, spread, weights, coefficients)
    return kernel.trajectory_log_ratio(flat, spread, weights, coefficients.to(trajectory), denoiser.residual).reshape(rows)


def denoising_loss(
    x0: Tensor,
    t: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    schedule: NoiseSchedule,
    *,
    parametrisation: str = "eps",
    loss: str = "huber",
    noise: Tensor | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """The sleep term's regression: noise `x0` to step `t`, predict, compare (METHOD section 3).

    Args:
        x0: latents [.., N, D]; with a grouped denoiser [G, .., N, D].
        t: 0-based timesteps, int64 [.., N].
        context: [.., N, C] or None.
        denoiser: the network of the chain.
        schedule: the noising process.
        parametrisation: what the network predicts: ``eps``, ``x0``, ``v`` or ``mean``.
        loss: ``squared``, ``absolute`` or ``huber`` error.
        noise, draws: as in `add_noise`.

    Returns:
        [.., N], the mean over latent dimensions.

    Example:
        >>> from ddvi_fast import denoisers, rng, schedules
        >>> denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=0, num_steps=10)
        >>> t = torch.tensor([0, 4, 9])
        >>> denoising_loss(torch.zeros(3, 2), t, None, denoiser, schedules.make("cosine", 10), draws=rng.Draws(0)).shape
        torch.Size([3])
    """
    error = _ERRORS[_checks.choice(loss, LOSSES, "loss")]
    x_t, noise = add_noise(x0, t, schedule, noise=noise, draws=draws)
    target = schedule.target(parametrisation, x0, noise, t)
    return error(denoiser(x_t, context, t), target, reduction="none").mean(-1)


_ERRORS = {"squared": functional.mse_loss, "absolute": functional.l1_loss, "huber": functional.smooth_l1_loss}


def _check_chain(y: Tensor, context: Tensor | None, denoiser: ResidualMLP, coefficients: Tensor) -> None:
    check_latents(y, "y_T")
    _checks.require(y.shape[-1] == denoiser.latent_dim, "y_T", f"{denoiser.latent_dim} latent dimensions", y)
    _checks.tensor(coefficients, "coefficients", (denoiser.num_steps, 5))
    if denoiser.groups is not None:
        _checks.require(y.dim() >= 3 and y.shape[0] == denoiser.groups, "y_T", f"shape [{denoiser.groups}, .., N, D]", y)
    denoiser.check_context(context)


def _check_source(coefficients: Tensor, stochastic: bool) -> None:
    """A density needs `s > 0` at every step; reading values back from a device would stall it, so only host tables are looked at."""
    if coefficients.device.type != "cpu":
        return
    noisy = coefficients[:, 2] > 0
    if stochastic and not bool(noisy.all()):
        _checks.fail("coefficients", "positive step deviations, for a chain with a density", "a table of eta = 0", "leave out draws and noise")
    if not stochastic and bool(noisy.any()):
        _checks.fail("draws", "draws or noise, for a table with positive step deviations", None, "eta = 0 gives a deterministic chain")


def _spread(context: Tensor, rows: torch.Size) -> Tensor:
    """`context` [.., N, C] broadcast to one row for each of `rows`."""
    paired = list(zip(reversed(context.shape[:-1]), reversed(rows), strict=False))
    fits = context.dim() - 1 <= len(rows) and all(have in (1, want) for have, want in paired)
    _checks.require(fits, "context", f"leading axes that broadcast to {list(rows)}", context)
    return context.expand(*rows, context.shape[-1])


def _flattener(shape: torch.Size, grouped: bool):
    """A function that flattens the rows of [.., N, W] to [R, W], or of [G, .., N, W] to [G, R, W]."""
    lead = shape[:1] if grouped else ()
    rows = shape[len(lead) : -1].numel()
    return lambda value: value.reshape(*lead, rows, value.shape[-1])
