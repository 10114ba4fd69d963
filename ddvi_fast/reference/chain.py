"""The denoiser and its chain: `T` affine steps around one small network, with the path log-ratio (docs/method.md, sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ddvi_fast import rng
from ddvi_fast.precision import narrowed
from ddvi_fast.rng import DeviceDraws, Draws


class ChainWeights(NamedTuple):
    """Weights of the time-conditioned residual network; all may carry a leading group axis `G`.

    The bias of each hidden layer is folded into `time_table`, so that a step adds one row to each layer.
    """

    first: Tensor  # [.., H, D + C]
    hidden: Tensor  # [.., 3, H, H]
    last: Tensor  # [.., D, H]
    last_bias: Tensor  # [.., D]
    time_table: Tensor  # [.., T, 4, H]

    @property
    def grouped(self) -> bool:
        return self.first.dim() == 3


def denoise(y: Tensor, context: Tensor | None, weights: ChainWeights, rows: Tensor, residual: bool, precision: str = "float32") -> Tensor:
    """Output of the network; `..` is empty or a group axis `G`.

    Args:
        y: States [.., R, D].
        context: Contexts [.., R, C] or None.
        weights: Weights of the network.
        rows: Rows of the time table, [.., R, 4, H] or one for all, [.., 1, 4, H].
        residual: Whether the first hidden layer is added to the third.
        precision: ``bf16`` or ``fp16`` rounds the operands of the three hidden products; sums have the dtype of `y`.

    Returns:
        Output [.., R, D].
    """
    inputs = y if context is None else torch.cat((y, context), dim=-1)
    hidden = narrowed(weights.hidden, precision)
    first = torch.relu(inputs @ weights.first.mT + rows[..., 0, :])
    second = torch.relu(narrowed(first, precision) @ hidden[..., 0, :, :].mT + rows[..., 1, :])
    third = torch.relu(narrowed(second, precision) @ hidden[..., 1, :, :].mT + rows[..., 2, :])
    if residual:
        third = third + first
    fourth = torch.relu(narrowed(third, precision) @ hidden[..., 2, :, :].mT + rows[..., 3, :])
    return fourth @ weights.last.mT + weights.last_bias.unsqueeze(-2)


def time_rows(time_table: Tensor, t: Tensor) -> Tensor:
    """Rows [.., R, 4, H] of the time table [.., T, 4, H] at steps `t` [.., R]; each group has its own table.

    An embedding adds the gradients of equal rows in one order; plain indexing would do it from several threads at once.
    """
    num_steps, _, hidden = time_table.shape[-3:]
    if time_table.dim() == 4:
        t = t + num_steps * torch.arange(time_table.shape[0], device=t.device).unsqueeze(-1)
    return embedding(t, time_table.reshape(-1, 4 * hidden)).unflatten(-1, (4, hidden))


def chain_noise(draws: Draws | DeviceDraws, num_steps: int, rows_shape: tuple[int, ...], latent_dim: int, like: Tensor) -> Tensor:
    """The noise [T, *rows_shape, D] that the chain draws: entry `i` is for step `i`, from stream `CHAIN + i`."""
    return rng.normal(draws, (*rows_shape, latent_dim), rng.CHAIN, planes=num_steps, device=like.device, dtype=like.dtype)


def sample_chain(
    y_T: Tensor, context: Tensor | None, weights: ChainWeights, coefficients: Tensor, noise: Tensor | None, residual: bool, precision: str = "float32"
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run the chain from `y_T` [.., R, D] down to `z`.

    Returns:
        `z` [.., R, D]; the path log-ratio [.., R] in nats, None without noise (a deterministic chain has no density); the trajectory
        [T + 1, .., R, D], start first.
    """
    states, path = [y_T], None if noise is None else y_T.new_zeros(y_T.shape[:-1])
    for step in reversed(range(coefficients.shape[0])):
        weight_state, weight_output, deviation, scale, beta = coefficients[step].unbind()
        output = denoise(states[-1], context, weights, weights.time_table[..., step, :, :].unsqueeze(-3), residual, precision)
        following = weight_state * states[-1] + weight_output * output
        if noise is not None:
            following = following + deviation * noise[step]
            path = path + step_log_ratio(states[-1], following, noise[step], deviation, scale, beta)
        states.append(following)
    return states[-1], path, torch.stack(states)


def each_through_its_group(
    run: Callable, weights: ChainWeights, order: Tensor, starts: Tensor, operands: Sequence[tuple[Tensor | None, int]], axes: Sequence[int]
) -> list[Tensor | None]:
    """Results of an operation on rows that each go through the network of their own group.

    Args:
        run: The operation: a function of the weights of one network, or of several on a leading axis, and of operands, that returns a tuple.
        weights: Weights of the G networks.
        order: The rows sorted by group, int64 [R].
        starts: Where each group starts in `order`, int64 [G + 1].
        operands: Each operand (or None) with the number of its axis of R rows.
        axes: The number of the axis of rows of each result.
    """
    if torch.compiler.is_compiling():  # The sizes of groups are not known: each row is a group of one with weights of its own.
        sorted_groups = torch.searchsorted(starts, torch.arange(order.shape[0], device=order.device), right=True) - 1
        groups = torch.empty_like(order).scatter(0, order, sorted_groups)
        own = ChainWeights(*(weight.index_select(0, groups) for weight in weights))
        results = run(own, *(None if value is None else value.unsqueeze(axis + 1) for value, axis in operands))
        return [None if value is None else value.squeeze(axis + 1) for value, axis in zip(results, axes, strict=True)]
    parts = []
    for group, rows in enumerate(order.split(starts.diff().tolist())):
        own = ChainWeights(*(weight[group] for weight in weights))
        parts.append(run(own, *(None if value is None else value.index_select(axis, rows) for value, axis in operands)))
    back = torch.argsort(order)
    whole = zip(zip(*parts, strict=True), axes, strict=True)
    return [None if values[0] is None else torch.cat(values, axis).index_select(axis, back) for values, axis in whole]


def step_log_ratio(y: Tensor, following: Tensor, noise: Tensor, deviation: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
    """`log r(y_t | y_{t-1}) - log q(y_{t-1} | y_t)`, shape of `y` less its last axis; the factors of 2 pi cancel.

    `noise` is the standardised residual `(y_{t-1} - m_t) / s_t`; the three coefficients broadcast over rows.
    """
    forward = (y - scale.unsqueeze(-1) * following).square().sum(-1) / beta + y.shape[-1] * torch.log(beta)
    reverse = noise.square().sum(-1) + 2 * y.shape[-1] * torch.log(deviation)
    return 0.5 * (reverse - forward)


def trajectory_log_ratio(trajectory: Tensor, context: Tensor | None, weights: ChainWeights, coefficients: Tensor, residual: bool) -> Tensor:
    """The path log-ratio [R] of a given trajectory [T + 1, R, D] (start first), all steps in one call of the network.

    Unlike the path of `sample_chain` it treats the states as data, which a doubly reparametrized gradient needs.
    """
    num_steps = coefficients.shape[0]
    y, following = trajectory[:-1], trajectory[1:]
    downwards = torch.arange(num_steps - 1, -1, -1, device=trajectory.device)
    rows = weights.time_table[downwards].unsqueeze(1)
    spread = None if context is None else context.expand(num_steps, *context.shape)
    columns = coefficients[downwards].view(num_steps, 1, 5)
    weight_state, weight_output, deviation, scale, beta = columns.unbind(-1)
    mean = weight_state.unsqueeze(-1) * y + weight_output.unsqueeze(-1) * denoise(y, spread, weights, rows, residual)
    noise = (following - mean) / deviation.unsqueeze(-1)
    return step_log_ratio(y, following, noise, deviation, scale, beta).sum(0)
