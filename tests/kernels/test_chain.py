"""The Triton chain against the reference in float64, through the interpreter where there is no GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton")

from dataclasses import replace

from ddvi_fast import _backend, _operands, parity, testing
from ddvi_fast._operands import Differentiable
from ddvi_fast.kernels import chain, shared_memory, weight_gradient
from ddvi_fast.kernels.chain_options import Sizes, prepared
from ddvi_fast.parity import normals
from ddvi_fast.reference import chain as reference
from tests.operands import ALL, TRITON_DEVICE, chain_operands, check_triton, run_triton

pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN):RuntimeWarning")]

# N, T, D, C, H, G, and whether the network is residual
SHAPES = [
    (1, 2, 1, 0, 64, None, True),
    (2, 3, 2, 2, 128, None, False),
    (65, 2, 3, 1, 64, None, True),
    (5, 2, 5, 7, 64, 3, True),
    (63, 2, 2, 0, 64, 2, False),
    (3, 2, 16, 2, 256, None, True),
    (7, 2, 33, 64, 64, None, True),
    (4, 2, 64, 0, 128, 1, True),
    (0, 2, 2, 2, 64, None, True),
    (0, 2, 5, 0, 64, 2, True),
]
SMALL = (9, 3, 2, 2, 64, None)


def _case(*shape, source="given", residual=None):
    # Sums in another order than PyTorch's may be a few roundings further off: the floor.
    return replace(parity.chain_case(shape, source, residual), floor=3e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_values_and_all_gradients_are_within_the_error_budget_of_the_reference(shape):
    check_triton(_case(*shape[:-1], residual=shape[-1]))


@pytest.mark.parametrize("result", ["z", "path", "trajectory"])
def test_each_result_alone_may_have_an_upstream_gradient(result):
    check_triton(_case(*SMALL), upstream=(result,))


def test_without_noise_the_chain_is_deterministic_and_has_no_path():
    assert "path" not in check_triton(_case(*SMALL, source="deterministic"))


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_drawn_noise_is_that_of_the_reference_and_the_same_seed_gives_the_same_bits(latent):
    case = parity.chain_case((5, 2, latent, 2, 64, 2), "drawn")
    check_triton(case)
    if latent == 5:  # one of them for the bits: each run of the interpreter takes a second
        first, second = run_triton(case), run_triton(case)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_bf16_is_as_good_as_that_of_the_reference(monkeypatch):
    """States within 1.3 times its error. Single gradients depend on the few ReLUs that rounding switches, so they are compared together."""
    monkeypatch.setattr(_backend, "_not_interpreted", lambda *asked: "")  # these kernels widen operands for the interpreter
    squares = torch.zeros(2, dtype=torch.float64)
    for shape in ((70, 3, 2, 2, 128, None), (70, 3, 3, 10, 128, None)):
        case = _case(*shape, residual=True)
        got, plain = run_triton(case, precision="bf16"), parity.run(case, "reference", TRITON_DEVICE, precision="bf16")
        exact = parity.run(case, "reference", TRITON_DEVICE, torch.float64)
        for name, value in exact.items():
            errors = torch.stack([(found[name] - value).norm() / value.norm() for found in (got, plain)]).cpu()
            if name.startswith("d_"):
                squares += errors.square()
            else:
                assert 1e-5 < errors[0] < 1.3 * errors[1], f"{name}: relative errors {errors.tolist()}"
    assert squares[0] < 1.3**2 * squares[1]


def test_signs_that_would_not_fit_are_made_again_in_pieces(monkeypatch):
    case = parity.chain_case((40, 3, 2, 2, 64, 2), "given", indexed=True)
    whole = run_triton(case)
    monkeypatch.setattr(_operands, "SIGN_BYTES", 2 * 40 * 32)  # of two steps
    for name, value in run_triton(case).items():
        if name in ("z", "path", "trajectory", "d_y_T", "d_context", "d_noise", "d_coefficients"):
            assert torch.equal(value, whole[name]), name
        else:
            testing.assert_close(value, whole[name], rtol=0, atol=1e-6 * float(whole[name].abs().max()), name=name)


@pytest.mark.parametrize(
    ("arch", "latent", "context", "rows"),
    [(80, 3, 32, 128), (80, 32, 32, 64), (86, 2, 2, 64), (90, 3, 32, 128), (90, 32, 32, 128), (90, 64, 64, 64), (100, 64, 64, 64), (120, 2, 2, 64)],
)
def test_weight_gradients_take_small_tiles_where_shared_memory_is_little(arch, latent, context, rows):
    assert weight_gradient.weight_options(arch, Sizes(1, 1 << 16, latent, context, 128, 40), True)["BN"] == rows


def test_the_condition_of_tensor_memory_leaves_every_bit(monkeypatch):
    case = parity.chain_case((40, 3, 2, 2, 64, 2), "given", indexed=True)
    without = run_triton(case)
    monkeypatch.setattr(shared_memory, "_TENSOR_MEMORY", 90)  # as if products of the assumed architecture summed there
    assert shared_memory.in_tensor_memory(90)
    for name, value in run_triton(case).items():
        assert torch.equal(value, without[name]), name


def test_signs_take_four_bits_for_each_hidden_unit_and_at_most_their_bound(monkeypatch):
    operands = chain_operands((6, 3, 2, 2, 128, 2))
    monkeypatch.setattr(_operands, "SIGN_BYTES", 3 * 12 * 64)
    assert _operands.signs_fit(operands) and _operands.signs_shape(operands) == (3, 2, 6, 4, 4)
    monkeypatch.setattr(_operands, "SIGN_BYTES", 3 * 12 * 64 - 1)
    assert not _operands.signs_fit(operands)


def _gradients(operands, d_z, d_path, dtype):
    """Gradients of the reference by name, from upstream gradients."""
    leaves = [value.to(dtype).requires_grad_() for value in operands.differentiable]
    y_T, context, *weights, table, noise = leaves
    z, path, _ = reference.sample_chain(y_T, context, reference.ChainWeights(*weights), table, noise, operands.residual)
    return dict(zip(Differentiable._fields, torch.autograd.grad((z, path), leaves, (d_z.to(dtype), d_path.to(dtype))), strict=True))


@pytest.mark.parametrize("steps, of_weights", [(100, False), (6, True)])
def test_float32_keeps_its_accuracy_over_many_steps_and_every_scale_of_gradients(steps, of_weights):
    operands = chain_operands((6, steps, 2, 2, 64, None), device=TRITON_DEVICE)
    scales = torch.logspace(-12, 3, 6, device=TRITON_DEVICE)
    d_z, d_path = testing.upstream_gradient(operands.y_T) * scales.unsqueeze(-1), scales
    _, _, *kept = chain.forward(operands, True, True, True)
    needed = Differentiable(*(True, True, *[of_weights] * 5, True, True))
    got = chain.backward(operands, *kept, d_z, d_path, None, needed)._asdict()
    exact, plain = (_gradients(operands, d_z, d_path, dtype) for dtype in (torch.float64, torch.float32))
    for name, value in exact.items():
        if got[name] is None:
            continue
        by_row = name in ("latents", "context", "noise")  # each row has a scale of its own

        def error(found, value=value, by_row=by_row):
            difference = found.double() - value
            return float((difference.norm(dim=-1) / value.norm(dim=-1)).max() if by_row else difference.norm() / value.norm())

        assert error(got[name]) < 2 * error(plain[name]) + 2e-7, f"{name}: {error(got[name]):.2g}, plain {error(plain[name]):.2g}"


@pytest.mark.parametrize("which", ["first", "hidden"])
def test_float32_beyond_the_range_of_its_parts_is_nan(which):
    operands = chain_operands((3, 2, 2, 2, 64, None), device=TRITON_DEVICE)
    operands = operands._replace(**{which: getattr(operands, which) * (1e5 if which == "first" else 1e4)})
    z, path, *kept = chain.forward(operands, True, True, True)
    assert z.isnan().all() and path.isnan().all()
    gradients = chain.backward(operands, *kept, torch.ones_like(z), None, None, ALL)
    assert gradients.first.isnan().any() and gradients.hidden.isnan().any()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("together", [True, False])
def test_rows_sorted_by_step_have_the_weight_gradients_of_the_chain(groups, together, monkeypatch):
    """The chain's row-steps as rows with a step each, in any order; all layers in one launch, or each in its own."""
    monkeypatch.setattr(weight_gradient, "_FEW", 16 if together else 0)
    shape = rows, steps, _, _, _, _ = (7, 3, 2, 2, 64, groups)
    operands = chain_operands(shape, device=TRITON_DEVICE)
    _, _, trajectory, signs, _ = chain.forward(operands, True, True, True)
    d_outputs = normals(5, *trajectory[1:].shape).to(trajectory)
    expected = weight_gradient.weight_gradients(operands, trajectory, signs, d_outputs)
    count = steps * groups * rows
    step = torch.arange(steps - 1, -1, -1).view(-1, 1, 1).expand(steps, groups, rows).flatten()
    segment = torch.arange(groups).view(1, -1, 1).expand(steps, groups, rows).flatten() * steps + step
    order = torch.sort(segment, stable=True).indices
    starts = torch.searchsorted(segment[order], torch.arange(groups * steps + 1)).to(TRITON_DEVICE)
    sizes = Sizes(groups, count, 2, 2, 64, steps, True)
    weights = prepared(operands.hidden, operands.time_table, operands.precision)
    sums = weight_gradient.WeightSums(operands.weights, sizes, weights, operands.residual, order.to(TRITON_DEVICE), starts, by_step=True)
    context = operands.context.expand(steps, groups, rows, 2).reshape(count, 2)
    sums.add(trajectory[:-1].reshape(count, 2), context, signs.reshape(count, 4, 2), d_outputs.reshape(count, 2))
    for got, value in zip(sums.result(), expected, strict=True):
        testing.assert_close(got, value, rtol=0, atol=2e-6 * float(value.abs().max()))


def test_programs_of_all_layers_fill_the_device_once():
    for entries, groups, two in itertools.product((1, 2, 41, 520, 2000, 5000, 20_000), (1, 2, 10, 44, 66, 132, 500), (False, True)):
        slices = weight_gradient.slices_of(entries, groups, two)
        assert all(1 <= each <= entries for each in slices)
        assert sum(slices) * groups <= 132 or (len(set(slices)) == 1 and slices[0] <= max(1, 132 // groups))
    assert weight_gradient.slices_of(520, 1, False) == (48, 36, 48) and weight_gradient.slices_of(20_480, 1, True) == (132, 132, 132)


def test_unsupported_operands_are_named():
    def unsupported(*shape, **changes):
        operands = chain_operands(shape, device=TRITON_DEVICE)._replace(**changes)
        tensors = {name: value for name, value in operands._asdict().items() if isinstance(value, torch.Tensor)}
        return chain.unsupported(operands.precision, **tensors)

    assert unsupported(3, 2, 2, 2, 64, None) is None
    assert "hidden widths" in unsupported(3, 2, 2, 2, 96, None)
    assert "at most 64" in unsupported(3, 2, 65, 2, 64, None)
    assert "float32" in unsupported(3, 2, 2, 2, 64, None, y_T=torch.zeros(3, 2, dtype=torch.float64, device=TRITON_DEVICE))
    assert "precision" in unsupported(3, 2, 2, 2, 64, None, precision="int8")
