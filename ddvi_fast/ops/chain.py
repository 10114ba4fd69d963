"""The denoising chain: sampling with its path log-ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks, _signature
from ddvi_fast._operands import NOTHING, OUTPUTS, SIGNS, TRAJECTORY, ChainOperands, Differentiable, signs_fit, signs_shape
from ddvi_fast._operator import Operator
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops.noise import check_latents, check_noise
from ddvi_fast.precision import check_reference_precision, full_precision, hidden_precision, without_autocast
from ddvi_fast.reference import chain as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import DeviceDraws, Draws


class ChainSample(NamedTuple):
    """Result of a run of the chain."""

    z: Tensor  # [.., N, D]
    path: Tensor | None  # [.., N]
    trajectory: Tensor | None  # [T + 1, .., N, D], start first


def sample_chain(
    y_T: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    coefficients: Tensor,
    *,
    draws: Draws | DeviceDraws | None = None,
    noise: Tensor | None = None,
    return_trajectory: bool = False,
    groups: Tensor | None = None,
    precision: str | None = None,
) -> ChainSample:
    """Run all `T` denoising steps from `y_T` to `z` and sum the path log-ratio (docs/method.md, sections 1 and 2).

    Without `draws` and `noise` the chain is deterministic; then its table must have `eta = 0`.

    Args:
        y_T: Start of the chain, [.., N, D]; [G, .., N, D] for a grouped denoiser without `groups`.
        context: Context of each row, [.., N, C], broadcast against the rows of `y_T`; None for a denoiser without context.
        denoiser: The network of the chain.
        coefficients: Table [T, 5] of `NoiseSchedule.coefficients`.
        draws: Position of the rows in the run's random numbers (default None); step `i` draws from stream `CHAIN + i`.
        noise: Standard normals [T, .., N, D] instead of `draws` (default None); entry `i` belongs to 0-based step `i`.
        return_trajectory: Whether to return every state (default False).
        groups: The group of each row, in [0, G), for a grouped denoiser, int64 [N] or [.., N] (default None: the leading axis of `y_T`). Each
            row goes through the network of its group only; its noise and its place in the results do not depend on the group.
        precision: Precision of the hidden layers' products, ``float32``, ``tf32``, ``bf16`` or ``fp16``; sums and all other layers are
            float32. By default it is that of autocast, or without autocast float32, or tf32 where torch allows it for its own products.
            A processor without bf16 products rounds operands to bf16 and multiplies them in float32.

    Returns:
        `ChainSample(z, path, trajectory)`: the end [.., N, D], the path log-ratio [.., N] in nats (None for a deterministic chain) and
        the states [T + 1, .., N, D], start first (None unless asked for).

    Raises:
        InputError: The shapes do not fit, a group does not exist, `draws` or `noise` come with a deterministic table, or neither with a
            stochastic one. On CUDA, rows of a group that does not exist are NaN: a check would stall the device.

    Example:
        >>> from ddvi_fast import denoisers, rng, schedules
        >>> denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=0, num_steps=10)
        >>> table = schedules.make("cosine", 10).coefficients("v")
        >>> sample = sample_chain(torch.zeros(5, 2), None, denoiser, table, draws=rng.Draws(0))
        >>> sample.z.shape, sample.path.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    precision = hidden_precision(precision, _checks.tensor(y_T, "y_T").device)
    check_denoiser(denoiser)
    weights = denoiser.chain_weights()
    call = call_of("chain", denoiser, (y_T, context, *weights, coefficients, noise), groups, precision)
    backend = _signature.remembered(call)
    if backend is None:
        check_chain(y_T, context, denoiser, coefficients, groups=groups)
        check_types(weights, y_T=y_T, context=context)
    _checks.flag(return_trajectory, "return_trajectory")
    stochastic = draws is not None or noise is not None
    check_source(coefficients, stochastic)
    if stochastic:
        check_noise(noise, draws, (coefficients.shape[0], *y_T.shape))
    y_T, context, noise = full_precision(y_T, context, noise)
    shape, index = y_T.shape, row_index(groups, y_T.shape[:-1], denoiser.groups)
    grouped = weights.grouped and index.order is None
    start, spread = flat(y_T, grouped), None if context is None else flat(spread_context(context, shape[:-1]), grouped)
    given, table = None if noise is None else noise.reshape(len(noise), *start.shape), coefficients.to(y_T)
    tensors = Differentiable(start, spread, *weights, table, given)
    if backend is None:
        named = dict(zip(ChainOperands._fields, tensors, strict=False))
        backend = _signature.remember(call, _backend.choose("chain", y_T.device, precision=precision, **named))
    if backend == "reference":
        check_reference_precision(precision, y_T.device)
        if draws is not None:
            given = reference.chain_noise(draws, len(table), tuple(shape[:-1]), shape[-1], y_T).reshape(len(table), *start.shape)

        def run(weights: ChainWeights, start: Tensor, context: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
            return reference.sample_chain(start, context, weights, table, noise, denoiser.residual, precision)

        with without_autocast(y_T.device):
            z, path, trajectory = index.through(run, weights, ((start, 0), (spread, 0), (given, 1)), (0, 0, 1))
    else:
        state, offset = (None, 0) if draws is None else (draws.state(y_T.device), draws.offset)
        rest = state, offset, shape[-2], denoiser.residual, precision
        z, path, trajectory, _, _ = _chain(*tensors, *index, *rest, _kept(tensors, return_trajectory), backend)
    states = trajectory.reshape(len(table) + 1, *shape) if return_trajectory else None
    return ChainSample(in_shape(z, shape), in_shape(path, shape[:-1]) if stochastic else None, states)


def _kept(differentiable: Differentiable, return_trajectory: bool) -> int:
    """What the forward pass keeps: the outputs of the network only for a gradient with respect to the table."""
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in differentiable):
        return OUTPUTS if differentiable.table.requires_grad else SIGNS
    return TRAJECTORY if return_trajectory else NOTHING


def _compute(*inputs):
    *operands, keep, backend = inputs
    kept = (keep >= SIGNS, keep >= OUTPUTS) if backend in _backend.SIGNED else ()
    results = _backend.implementation(backend, "chain").forward(ChainOperands(*operands), keep >= TRAJECTORY, *kept)
    return *results, *[None] * (len(_RESULTS) - len(results))


def _fake(*inputs):
    *values, keep, backend = inputs
    operands = ChainOperands(*values)
    y_T, stochastic, steps = operands.y_T, operands.noise is not None or operands.state is not None, operands.coefficients.shape[0]
    trajectory = (steps + 1, *y_T.shape) if keep >= TRAJECTORY else 0
    signs = signs_shape(operands)
    keeps_signs = keep >= SIGNS and backend in _backend.SIGNED and (signs_fit(operands) or backend != "triton")
    return (
        y_T.new_empty(y_T.shape),
        y_T.new_empty(y_T.shape[:-1] if stochastic else 0),
        y_T.new_empty(trajectory),
        y_T.new_empty(signs, dtype=torch.int32) if keeps_signs else y_T.new_empty(0),
        y_T.new_empty((steps, *y_T.shape) if keeps_signs and keep >= OUTPUTS else 0),
    )


def _compute_backward(*inputs):
    *operands, _, trajectory, signs, outputs, d_z, d_path, d_trajectory, needed, backend = inputs
    # An absent result is an empty tensor, of which compiled code may pass an empty gradient.
    signs, outputs, *upstream = (value if value is not None and value.numel() else None for value in (signs, outputs, d_z, d_path, d_trajectory))
    kept = (trajectory, signs, outputs) if backend in _backend.SIGNED else (trajectory,)
    return _backend.implementation(backend, "chain").backward(ChainOperands(*operands), *kept, *upstream, Differentiable(*needed))


_RESULTS = ("z", "path", "trajectory", "signs", "outputs")  # the last two of backends whose backward pass reads them
_chain = Operator(
    "chain(Tensor y_T, Tensor? context, Tensor first, Tensor hidden, Tensor last, Tensor last_bias, Tensor time_table, Tensor coefficients, "
    "Tensor? noise, Tensor? order, Tensor? starts, Tensor? state, SymInt offset, SymInt rows_per_sample, bool residual, str precision, "
    "int keep, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _compute,
    _fake,
    _compute_backward,
    gradients_of=("y_T", "context", *ChainWeights._fields, "coefficients", "noise"),
    saved=(2, 3, 4),
    constant=(3, 4),
)


class RowIndex(NamedTuple):
    """Rows sorted by their group; None where rows have no index."""

    order: Tensor | None  # int64 [R]: the rows of group 0, then those of group 1, and so on
    starts: Tensor | None  # int64 [G + 1]: where each group starts in `order`

    def through(
        self, run: Callable, weights: ChainWeights, operands: Sequence[tuple[Tensor | None, int]], axes: Sequence[int]
    ) -> Sequence[Tensor | None]:
        """Results of the reference `run(weights, *operands)`, or those of `reference.each_through_its_group`."""
        if self.order is None or self.starts is None:
            return run(weights, *(value for value, _ in operands))
        return reference.each_through_its_group(run, weights, self.order, self.starts, operands, axes)


def row_index(groups: Tensor | None, rows: torch.Size, count: int | None) -> RowIndex:
    """The index of rows of shape `rows`, from the group of each; there are `count` groups."""
    if groups is None or count is None:
        return RowIndex(None, None)
    ordered, order = torch.sort(groups.expand(rows).flatten(), stable=True)
    return RowIndex(order, torch.searchsorted(ordered, torch.arange(count + 1, device=groups.device)))


def call_of(operation: str, denoiser: ResidualMLP, tensors: Sequence[Tensor | None], groups: Tensor | None, *options: Any) -> tuple | None:
    """The signature of a call with a denoiser, whose weights are among the `tensors`; None with groups, whose values are checked."""
    if groups is not None:
        return None
    sizes = denoiser.latent_dim, denoiser.context_dim, denoiser.num_steps, denoiser.groups
    return _signature.signature(operation, tensors, *options, *sizes)


def check_denoiser(denoiser: ResidualMLP) -> None:
    """Check that a network can be that of a chain."""
    _checks.require(hasattr(denoiser, "chain_weights"), "denoiser", "a network as denoisers.ResidualMLP", denoiser)


def check_types(weights: ChainWeights, **operands: Tensor | None) -> None:
    """Check that operands have the type of the denoiser's weights."""
    for name, value in operands.items():
        if value is not None:
            _checks.same_dtype(name, value, weights.first)


def check_chain(
    y: Tensor,
    context: Tensor | None,
    denoiser: ResidualMLP,
    table: Tensor,
    states: str = "y_T",
    name: str = "coefficients",
    groups: Tensor | None = None,
) -> None:
    """Check that states, context, table and groups fit the denoiser; `states` and `name` are the caller's names of states and table."""
    check_latents(y, states)
    check_denoiser(denoiser)
    _checks.require(y.shape[-1] == denoiser.latent_dim, states, f"{denoiser.latent_dim} latent dimensions", y)
    _checks.tensor(table, name, (denoiser.num_steps, 5))
    if groups is not None:
        _check_groups(groups, y.shape[:-1], denoiser.groups)
    elif denoiser.groups is not None:
        _checks.require(y.dim() >= 3 and y.shape[0] == denoiser.groups, states, f"shape [{denoiser.groups}, .., N, D]", y)
    denoiser.check_context(context)
    if context is not None:
        _checks.same_device("context", context, y)


def _check_groups(groups: Tensor, rows: torch.Size, count: int | None) -> None:
    """Check that `groups` are int64, broadcast to `rows` and exist."""
    _checks.require(count is not None, "groups", "None, for a denoiser without groups", groups)
    _checks.tensor(groups, "groups", floating=False)
    fits = groups.dtype == torch.int64 and groups.shape in (rows, rows[-1:])
    _checks.require(fits, "groups", f"an int64 tensor of shape {list(rows)} or {list(rows[-1:])}", groups)
    if _checks.readable(groups) and groups.numel():
        low, high = (int(end) for end in torch.aminmax(groups))
        _checks.require(low >= 0 and high < count, "groups", f"groups in [0, {count})", f"{low} to {high}")


def spread_context(context: Tensor, rows: torch.Size) -> Tensor:
    """`context` [.., N, C] broadcast to one row for each of `rows`."""
    if context.dim() - 1 == len(rows) and context.shape[:-1] == rows:
        return context
    paired = list(zip(reversed(context.shape[:-1]), reversed(rows), strict=False))
    fits = context.dim() - 1 <= len(rows) and all(have == 1 or have == want for have, want in paired)
    _checks.require(fits, "context", f"leading axes that broadcast to {list(rows)}", context)
    return context.expand(*rows, context.shape[-1])


def flat(value: Tensor, grouped: bool) -> Tensor:
    """Flatten the rows: [.., N, W] to [R, W], or [G, .., N, W] to [G, R, W] where they are `grouped`."""
    if value.dim() == 2 + grouped:
        return value
    return value.flatten(1, -2) if grouped else value.flatten(0, -2)


def in_shape(value: Tensor, shape: torch.Size) -> Tensor:
    """`value` in a shape, which is often its own: then nothing is asked of torch."""
    return value if value.dim() == len(shape) else value.reshape(shape)


def check_source(coefficients: Tensor, stochastic: bool) -> None:
    """Check that the table has `s > 0` at every step for a chain with a density, and nowhere for one without."""
    if not _checks.readable(coefficients):
        return
    noisy = coefficients[:, 2] > 0
    if stochastic and not bool(noisy.all()):
        _checks.fail("coefficients", "positive step deviations, for a chain with a density", "a table of eta = 0", "leave out draws and noise")
    if not stochastic and bool(noisy.any()):
        _checks.fail("draws", "draws or noise, for a table with positive step deviations", None, "eta = 0 gives a deterministic chain")
