"""The sleep term's regression in Triton against the reference in float64: values, every gradient, awkward shapes, several pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import _operands, parity, testing
from ddvi_fast.kernels import common, shared_memory, sleep, sleep_common
from ddvi_fast.kernels.chain_options import Sizes
from tests.operands import TRITON_DEVICE, call, check_triton, exact_regression, largest_relative_error, sleep_operands

# N, T, D, C, H, G
SHAPES = [
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, None),
    (33, 2, 3, 7, 64, 2),
    (65, 100, 5, 1, 64, 1),
    (17, 5, 16, 64, 128, None),
    (3, 2, 33, 2, 256, None),
    (9, 5, 64, 0, 64, 2),
]

pytestmark = pytest.mark.usefixtures("poison_empty")


def _case(shape, loss="squared", parametrisation="random", source="given", residual=None):
    # Products of tf32 triples are good to about 2^-22.
    return replace(parity.sleep_case(shape, source, loss, parametrisation, residual), floor=4e-6 if source == "given" else 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape):
    check_triton(_case(shape))


@pytest.mark.parametrize(("rows", "steps", "groups"), [(70, 3, 2), (11, 4, 5)])
def test_values_and_gradients_of_rows_with_an_index_of_groups(rows, steps, groups):
    """Those sorted by group and step; tiles longer and shorter than the rows of a segment."""
    check_triton(replace(parity.sleep_case((rows, steps, 3, 2, 64, groups), "given", "huber", "random", indexed=True), floor=4e-6))


@pytest.mark.parametrize("loss", ["absolute", "huber"])
@pytest.mark.parametrize("residual", [False, True])
def test_losses(loss, residual):
    check_triton(_case((21, 5, 3, 2, 64, None), loss, residual=residual))


@pytest.mark.parametrize("groups", [None, 2])
def test_drawn_noise_is_the_given_noise(groups):
    """Rows keep their draws however they are flattened, with seeds of 64 bits and an offset."""
    check_triton(parity.sleep_case((7, 3, 5, 2, 64, groups), "drawn", "huber", "random", samples=(3,) if groups else (2, 3)))


def test_parts_and_tiles_add_up(monkeypatch):
    """One program for all tiles, rows sorted in one part, segments longer than a tile."""
    monkeypatch.setattr(sleep, "_PROGRAMS", 1)
    monkeypatch.setattr(sleep_common, "_PARTS", 1)
    check_triton(_case((150, 2, 2, 2, 64, None)))
    check_triton(_case((100, 70, 2, 2, 64, None)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_within_its_rounding(precision):
    operands = sleep_operands((40, 4, 3, 2, 64, 2), precision=precision, device=TRITON_DEVICE)
    assert 1e-5 < largest_relative_error(call(sleep, operands), exact_regression(operands)) < (0.06 if precision == "bf16" else 0.01)


def test_a_step_that_does_not_exist_gives_nan():
    operands = sleep_operands((40, 3, 3, 2, 64, None), device=TRITON_DEVICE)
    operands.t[7], operands.t[9] = -1, 3
    assert call(sleep, operands)["loss"].isnan().nonzero().flatten().tolist() == [7, 9]


@pytest.mark.parametrize("parts", [256, 2])
@pytest.mark.parametrize(("rows", "steps", "groups"), [(1, 2, None), (70, 5, None), (300, 70, None), (150, 3, 2)])
def test_rows_are_sorted_by_group_and_step(monkeypatch, rows, steps, groups, parts):
    """As a stable sort does; a row whose step does not exist counts to the first."""
    monkeypatch.setattr(sleep_common, "_PARTS", parts)
    operands = sleep_operands((rows, steps, 2, 2, 64, groups), device=TRITON_DEVICE)
    t = parity.timesteps(operands.t.shape, steps + 2).to(TRITON_DEVICE) - 1
    group = torch.zeros_like(t) if groups is None else torch.arange(groups, device=t.device)[:, None].expand_as(t)
    key = (group * steps + torch.where((t >= 0) & (t < steps), t, 0)).flatten()
    _check_sorted(operands._replace(t=t), key, (groups or 1) * steps)


@pytest.mark.parametrize("parts", [256, 2])
def test_rows_with_an_index_are_sorted(monkeypatch, parts):
    """Rows of a group that does not exist are left out."""
    monkeypatch.setattr(sleep_common, "_PARTS", parts)
    rows, steps, groups = 300, 5, 3
    operands = sleep_operands((rows, steps, 2, 2, 64, groups), device=TRITON_DEVICE)
    t, group = (parity.timesteps((rows,), number).to(TRITON_DEVICE) for number in (steps, groups + 1))
    order, starts = group.argsort(stable=True), torch.searchsorted(group.sort().values, torch.arange(groups + 1, device=group.device))
    indexed = operands._replace(x0=operands.x0[0], t=t, order=order, starts=starts)
    _check_sorted(indexed, torch.where(group < groups, group * steps + t, groups * steps), groups * steps)


def _check_sorted(operands, key, segments):
    sizes = Sizes.of(operands.x0, operands.context, operands.first, operands.table, operands.starts)
    _, found = sleep_common.prepared_and_sorted(operands, sizes)
    assert torch.equal(found.starts, torch.searchsorted(key.sort().values, torch.arange(segments + 1, device=key.device)))
    present = int(found.starts[-1])
    assert torch.equal(found.order[:present], key.argsort(stable=True)[:present])


@pytest.mark.parametrize("table", [False, True])
def test_a_regression_with_its_gradients_has_six_launches(table):
    """Preparation, sorting, the pass, scaling, the weight gradients and the sums over segments."""
    sizes = Sizes(1, 65_536, 2, 2, 128, 40)
    x0, *tensors, state = sizes.meta_tensors()
    operands = _operands.SleepOperands(x0, state.new_empty(65_536), *tensors, None, None, None, state, 0, 65_536, "huber", True, "bf16")
    keep = _operands.OF_WEIGHTS + _operands.OF_CONTEXT + _operands.OF_TABLE * table
    kept = _operands.SleepResults.empty(operands, x0.new_empty(65_536), keep).with_weights(operands)
    needed = _operands.Differentiable(False, *[True] * 6, table, False)
    forward = common.launches("", 90, sleep.forward, operands, keep)
    backward = common.launches("", 90, sleep.backward, operands, kept, kept.loss, needed)
    assert [each.compilation.kernel.__name__ for each in forward] == ["sleep_fwd_kernel_prepare", "sleep_fwd_kernel_sort", "sleep_fwd_kernel"]
    assert len(forward) + len(backward) == 6


@pytest.mark.parametrize("keep", [0, 1, 31])
def test_what_is_kept_has_the_announced_shapes(keep):
    """The operator's fake version and the kernels agree."""
    operands = sleep_operands((20, 4, 3, 2, 64, 2), device=TRITON_DEVICE)
    found = sleep.forward(operands, keep)
    announced = _operands.SleepResults.empty(operands, found.loss, keep)
    announced = announced.with_weights(operands) if keep else announced
    for value, expected in zip(found, announced, strict=True):
        assert (value is None) == (expected is None)
        assert value is None or (value.shape == expected.shape and value.dtype == expected.dtype)


def test_gradients_are_linear_in_the_upstream_and_repeat_their_bits():
    """Scaled by a power of two they keep their bits, from 1e-12 to 1e3."""
    operands = sleep_operands((70, 4, 3, 2, 64, 2), device=TRITON_DEVICE)
    keep, needed = 31, _operands.Differentiable(*[True] * 9)
    kept = sleep.forward(operands, keep)
    upstream = testing.upstream_gradient(kept.loss)
    first = sleep.backward(operands, kept, upstream, needed)
    again = sleep.backward(operands, sleep.forward(operands, keep), upstream, needed)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    for factor in (2.0**-40, 2.0**10):
        for one, scaled in zip(first, sleep.backward(operands, kept, factor * upstream, needed), strict=True):
            assert torch.equal(factor * one, scaled)


def test_the_condition_of_tensor_memory_leaves_every_bit(monkeypatch):
    operands, needed = sleep_operands((70, 4, 3, 2, 64, 2), device=TRITON_DEVICE), _operands.Differentiable(*[True] * 9)

    def everything():
        kept = sleep.forward(operands, 31)
        return [*kept, *sleep.backward(operands, kept, testing.upstream_gradient(kept.loss), needed)]

    without = everything()
    monkeypatch.setattr(shared_memory, "_TENSOR_MEMORY", 90)  # as if products of the assumed architecture summed there
    assert shared_memory.in_tensor_memory(90)
    assert all(torch.equal(value, before) for value, before in zip(everything(), without, strict=True))


def test_unsupported_operands_are_named():
    odd = torch.zeros(3, 96, 96, device=TRITON_DEVICE)
    assert sleep.unsupported(hidden=torch.zeros(3, 64, 64, device=TRITON_DEVICE)) is None
    assert "hidden widths 64, 128, 256, got 96" in sleep.unsupported(hidden=odd)
    assert "got int8" in sleep.unsupported("int8")
    assert "at most 64 columns, got 65" in sleep.unsupported(x0=torch.zeros(2, 65, device=TRITON_DEVICE))
