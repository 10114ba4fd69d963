"""The informed steps of a chain, each of which sees a direction at its state (docs/method.md, section 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks, _operator, ops
from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.denoisers import StepView
from ddvi_fast.ops.chain import RowIndex, check_chain, check_types, flat, row_index, spread_context
from ddvi_fast.precision import full_precision, hidden_precision

# Function `direct(v, step)` of states [.., N, D] and the 0-based step that returns directions of the shape of `v`, constants.
Direct = Callable[[Tensor, int], Tensor]


class InformedSteps(NamedTuple):
    """Steps of a chain that see directions `d_t`: their means have `gain_t d_t` more, and their denoiser has the context `[c(x), d_t]`.

    Attributes:
        denoiser: The denoiser at these steps.
        table: Their rows of the chain's table, [T, 5].
        gains: Factors of the directions in the means, [T].
        direct: Function that computes the directions.
    """

    denoiser: StepView
    table: Tensor
    gains: Tensor
    direct: Direct

    def run(self, start: Tensor, context: Tensor | None, noise: Tensor, groups: Tensor | None, return_trajectory: bool) -> ops.ChainSample:
        """Run the steps.

        Args:
            start: States before them [.., N, D].
            context: Context of the data [.., N, C], or None.
            noise: Standard normals [T, .., N, D].
            groups: Classes of the rows for a grouped denoiser, int64 [N] or [.., N], or None.
            return_trajectory: Whether to return all states.
        """
        fused = self._fused(start, context, noise, groups)
        if fused is None:
            return self._step_by_step(start, context, noise, groups, return_trajectory)
        z, path, trajectory = fused
        return ops.ChainSample(z, path, trajectory if return_trajectory else None)

    def _step_by_step(self, start: Tensor, context: Tensor | None, noise: Tensor, groups: Tensor | None, keep: bool) -> ops.ChainSample:
        """Each step as a chain of its own."""
        v, path, states = start, start.new_zeros(start.shape[:-1]), [start]
        for step in reversed(range(len(self.table))):
            direction, row = self.direct(v, step), slice(step, step + 1)
            # The direction's part of the mean, in units of the noise: the chain of one step then needs nothing but another noise.
            shift = self.gains[step] / self.table[step, 2] * direction
            network = self.denoiser.at(row)
            chain = ops.sample_chain(v, joined(context, direction), network, self.table[row], noise=(noise[step] + shift).unsqueeze(0), groups=groups)
            v, path = chain.z, path + chain.path - (shift * (noise[step] + 0.5 * shift)).sum(-1)
            states.append(v)
        return ops.ChainSample(v, path, torch.stack(states) if keep else None)

    def _fused(self, start: Tensor, context: Tensor | None, noise: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """The steps with one backward pass for all of them, or None where the C++ kernel does not support them."""
        if _backend.fused(start.device) != "cpp":
            return None
        start, context, noise = full_precision(start, context, noise)
        weights, shape, width = self.denoiser.chain_weights(), start.shape, start.shape[-1]
        if _operator.needs_dispatch(start, context, noise, self.table, self.gains, *weights):
            return None
        precision = hidden_precision(None, start.device)
        tensors = {"y_T": start, "context": context, **weights._asdict(), "coefficients": self.table, "noise": noise}
        if _backend.choose("chain", start.device, precision=precision, **tensors) != "cpp":
            return None
        check_chain(start, joined(context, start), self.denoiser, self.table, groups=groups)
        check_types(weights, y_T=start, context=context)
        index = row_index(groups, shape[:-1], self.denoiser.groups)
        grouped = weights.grouped and index.order is None
        spread = None if context is None else flat(spread_context(context, shape[:-1]), grouped)
        flat_start = flat(start, grouped)
        steps = _Steps(lambda v, step: self.direct(v.view(shape), step).reshape(v.shape), index, self.denoiser.residual, precision)
        given = (flat_start, spread, *weights, self.table, noise.reshape(len(noise), *flat_start.shape), self.gains)
        z, path, trajectory = _FusedSteps.apply(*_operator.contiguous(*given), steps)
        return z.view(shape), path.view(shape[:-1]), trajectory.view(-1, *shape[:-1], width)


class _Steps(NamedTuple):
    """What the fused steps need besides tensors with gradients; `direct` takes flat states."""

    direct: Direct
    index: RowIndex
    residual: bool
    precision: str

    def operands(self, *tensors: Tensor | None) -> ChainOperands:
        """Operands of a chain with given noise, from those that are differentiable."""
        rest = {"state": None, "offset": 0, "rows_per_sample": 1, "residual": self.residual, "precision": self.precision}
        return ChainOperands(*tensors, **self.index._asdict(), **rest)


class _FusedSteps(torch.autograd.Function):
    """Informed steps without an autograd graph of each: a direction is a constant, so that the backward pass of all steps is one of the kernel."""

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, context: Tensor | None, first: Tensor, hidden: Tensor, last: Tensor, last_bias: Tensor, time_table: Tensor,
        table: Tensor, noise: Tensor, gains: Tensor, steps: _Steps,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        kernel, count, width = _backend.implementation("cpp", "chain"), len(table), 0 if context is None else context.shape[-1]
        trajectory = start.new_empty(count + 1, *start.shape)
        trajectory[0] = start
        # A step has its own context and noise: that of the data with the direction behind it, and the one with the direction's part of the mean.
        contexts, moved = start.new_empty(count, *start.shape[:-1], width + start.shape[-1]), torch.empty_like(noise)
        if context is not None:
            contexts[..., :width] = context
        directions, paths = contexts[..., width:], start.new_empty(count, *start.shape[:-1])
        factors = (gains / table[:, 2]).tolist()
        operands = steps.operands(start, None, first, hidden, last, last_bias, time_table, table, moved)
        single = kernel.SingleSteps(operands, contexts, trajectory, paths)
        for place, step in enumerate(reversed(range(count))):
            directions[step] = steps.direct(trajectory[place], step)
            torch.add(noise[step], directions[step], alpha=factors[step], out=moved[step])
            single.run(step)
        # The kernel's path has the squares of the moved noise, |xi + e|^2 / 2, in place of those of the noise.
        path = paths.sum(0) - 0.5 * (moved.square() - noise.square()).sum((0, -1))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(contexts, first, hidden, last, last_bias, time_table, table, noise, gains, moved, trajectory)
        ctx.steps, ctx.width = steps, width
        return trajectory[-1].clone(), path, trajectory

    @staticmethod
    def backward(ctx: Any, d_z: Tensor | None, d_path: Tensor | None, d_trajectory: Tensor | None) -> tuple[Tensor | None, ...]:
        _checks.require(not torch.is_grad_enabled(), "create_graph", "False, as the fused kernels have first derivatives only", True)
        contexts, first, hidden, last, last_bias, time_table, table, noise, gains, moved, trajectory = ctx.saved_tensors
        needed, width = ctx.needs_input_grad, ctx.width
        by_noise = needed[7] or needed[8] or needed[9]
        asked = Differentiable(needed[0], needed[1], *needed[2:7], needed[7], by_noise)
        operands = ctx.steps.operands(trajectory[0], contexts[0], first, hidden, last, last_bias, time_table, table, moved)
        upstream = _operator.contiguous(d_z, d_path, d_trajectory)
        found = _backend.implementation("cpp", "chain").backward(operands, trajectory, *upstream, asked, stepwise=True)
        d_context = found.context[..., :width] if found.context is not None else None
        d_table, d_noise, d_gains = found.table, found.noise, None
        if by_noise:
            # With e = gain / s d, the path has - |xi + e|^2 / 2 + |xi|^2 / 2 more than the kernel's.
            d_moved = d_noise if d_path is None else d_noise - d_path.unsqueeze(-1) * moved
            d_noise = d_moved if d_path is None else d_moved + d_path.unsqueeze(-1) * noise
            d_factors = (d_moved * contexts[..., width:]).flatten(1).sum(1)
            d_gains = d_factors / table[:, 2]
            if d_table is not None:
                d_table[:, 2] -= d_gains * gains / table[:, 2]
        weights = (found.first, found.hidden, found.last, found.last_bias, found.time_table)
        return found.latents, d_context, *weights, d_table, d_noise if needed[8] else None, d_gains, None


def joined(context: Tensor | None, direction: Tensor) -> Tensor:
    """The context [.., N, C + D] of the denoiser: c(x) [.., N, C], and the directions [.., N, D]."""
    if context is None:
        return direction
    rows = _operator.broadcast_shapes(context.shape[:-1], direction.shape[:-1])
    return torch.cat((context.expand(*rows, -1), direction.expand(*rows, -1)), -1)
