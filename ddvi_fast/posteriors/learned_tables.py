"""Tables of a learned schedule, made anew in every update: in one launch on a device, in plain PyTorch elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _backend
from ddvi_fast._operands import ScheduleSpec
from ddvi_fast._operator import Part
from ddvi_fast.dense import on_device
from ddvi_fast.schedules import NoiseSchedule, learned_betas

_MOST_STEPS = 1024  # one program of the kernel has all steps


class Tables(NamedTuple):
    """The chain's table [T, 5] with its learned variances, and the table [T, 5] and constants [T] of `NoiseSchedule.divergence_table`."""

    chain: Tensor
    divergence: Tensor
    constants: Tensor


def chain_table(schedule: NoiseSchedule, factors: Tensor | None, spec: ScheduleSpec) -> Tensor:
    """The chain's table [T, 5], whose variances have the factors `exp(factors)`, [T]."""
    table = schedule.coefficients(*spec[1:])
    if factors is None:
        return table
    deviations = table[:, 2] * torch.exp(0.5 * factors)
    return torch.cat((table[:, :2], deviations.unsqueeze(1), table[:, 3:]), dim=1)


def fused_tables(raw: Tensor, factors: Tensor | None, spec: ScheduleSpec) -> Tables | None:
    """All tables of a learned schedule from its parameters [T] and the logarithms of the factors on the variances [T].

    They are None where the kernels cannot make them.
    """
    if not on_device(raw) or raw.dtype != torch.float32 or len(raw) > _MOST_STEPS or (factors is not None and factors.dtype != torch.float32):
        return None
    return Tables(*_tables(raw.contiguous(), None if factors is None else factors.contiguous(), spec))


def _plain(raw: Tensor, factors: Tensor | None, spec: ScheduleSpec) -> tuple[Tensor, Tensor, Tensor]:
    schedule = NoiseSchedule(learned_betas(raw, spec.kind), spec.kind)
    table = chain_table(schedule, factors, spec)
    return table, *schedule.divergence_table(spec.parametrisation, spec.eta, table[:, 2])


def _forward(raw: Tensor, factors: Tensor | None, spec: ScheduleSpec) -> tuple[Tensor, Tensor, Tensor]:
    return _backend.implementation("triton", "schedule").forward(raw, factors, spec)


def _backward(inputs, results, upstream, needed):
    return _backend.implementation("triton", "schedule").backward(*upstream, *inputs)


_tables = Part("LearnedTables", _plain, _forward, _backward)
