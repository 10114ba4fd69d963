"""The chain's CUDA kernels, run by host threads in place of a GPU's, against the reference in float64."""

from __future__ import annotations

import ctypes

import pytest
import torch

pytest.importorskip("triton")

from ddvi_fast import parity, rng, schedules, testing
from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.kernels import signs
from ddvi_fast.reference import chain as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws
from tests.cuda import emulated
from tests.operands import chain_operands

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="no C++ compiler to compile the CUDA sources for the CPU with")

# Allowed multiple of the error of plain PyTorch in the same precision, and a floor for results that happen to be exact, relative in length.
BUDGET = {"bf16": (1.3, 2.0**-11), "fp16": (1.3, 2.0**-14), "float32": (2.5, 5e-7)}
STATE = torch.tensor([(1 << 63) - 5, (1 << 33) - 3])  # the first index crosses 2^33

# N, T, D, C, H, G; precision; source of the noise; whether rows have an index, and whether the network is residual
CASES = [
    ((70, 5, 2, 2, 128, None), "bf16", "drawn", False, True),
    ((70, 5, 2, 2, 128, None), "float32", "drawn", False, True),
    ((16, 40, 2, 2, 128, None), "bf16", "drawn", False, True),
    ((16, 40, 2, 2, 128, None), "float32", "drawn", False, True),
    ((45, 8, 3, 2, 128, 3), "bf16", "drawn", True, True),
    ((45, 8, 3, 2, 128, 3), "float32", "drawn", True, True),
    ((9, 2, 16, 16, 128, None), "float32", "given", False, False),
    ((11, 2, 16, 16, 128, None), "bf16", "drawn", False, True),
    ((19, 2, 3, 0, 64, 3), "bf16", "deterministic", False, False),
    ((7, 5, 5, 7, 64, 2), "fp16", "given", False, True),
    ((1, 2, 1, 0, 64, None), "float32", "drawn", False, True),
]
WIDE = CASES[0], CASES[1]
DEFAULT = CASES[4], CASES[5]  # as in the default recipe: eight steps, three coordinates, an index of groups
SMALL, SMALL_FLOAT32 = CASES[8], CASES[10]


def _name(case) -> str:
    shape, precision, source, indexed, residual = case
    return f"{'-'.join(map(str, shape))}-{precision}-{source}{'-indexed' * indexed}{'-plain' * (not residual)}"


def make(case, **changes) -> ChainOperands:
    """Operands of a case."""
    (rows, steps, latent, context, hidden, groups), precision, source, indexed, residual = case
    options = {"residual": residual, "precision": precision}
    if source != "given":
        options |= {"state": STATE, "offset": 11, "rows_per_sample": 4}
    operands = chain_operands((rows, steps, latent, context, hidden, groups), **options)
    if indexed:
        sorted_groups, order = parity.row_groups((rows,), groups).sort(stable=True)
        starts = torch.searchsorted(sorted_groups, torch.arange(groups + 1))
        operands = operands._replace(
            y_T=parity.normals(1, rows, latent),
            context=parity.normals(2, rows, context),
            order=order,
            starts=starts,
            coefficients=parity.free_table(steps),
        )
    if source == "deterministic":
        table = schedules.make("cosine", steps).coefficients("v", eta=0.0)  # without variances
        operands = operands._replace(state=None, coefficients=table)
    operands = operands._replace(**changes)
    return operands._make(value.contiguous() if isinstance(value, torch.Tensor) else value for value in operands)


def noise_of(operands: ChainOperands, dtype: torch.dtype) -> torch.Tensor | None:
    """The noise that a call draws, from the specification."""
    if operands.drawn_from is None:
        return None
    state, lead = operands.state.tolist(), operands.y_T.shape[:-1]
    row = torch.arange(lead.numel())
    index = (row % operands.rows_per_sample) + (row // operands.rows_per_sample << 40)
    one = [
        rng.formula(
            "normal", Draws(state[0], state[1] + operands.offset + int(i)), (1, operands.y_T.shape[-1]), rng.CHAIN, len(operands.coefficients)
        )
        for i in index
    ]
    return torch.cat(one, dim=1).reshape(-1, *operands.y_T.shape).to(dtype)


def expected(operands: ChainOperands, dtype: torch.dtype, precision: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Results and gradients of the reference by name, and the upstream gradients in float32."""
    leaves = [None if value is None else value.to(dtype).requires_grad_() for value in operands.differentiable]
    y_T, context, *weights, table, noise = leaves
    weights, given = ChainWeights(*weights), noise if noise is not None else noise_of(operands, dtype)

    def run(own, y_T, context, noise):
        return reference.sample_chain(y_T, context, own, table, noise, operands.residual, precision)

    if operands.starts is None:
        outputs = run(weights, y_T, context, given)
    else:
        rows = ((y_T, 0), (context, 0), (given, 1))
        outputs = reference.each_through_its_group(run, weights, operands.order, operands.starts, rows, (0, 0, 1))
    results = {name: value for name, value in zip(("z", "path", "trajectory"), outputs, strict=True) if value is not None}
    upstream = {name: testing.upstream_gradient(value.detach().float(), seed) for seed, (name, value) in enumerate(results.items())}
    found = iter(
        torch.autograd.grad(list(results.values()), [leaf for leaf in leaves if leaf is not None], [value.to(dtype) for value in upstream.values()])
    )
    gradients = {f"d_{name}": next(found) for name, leaf in zip(Differentiable._fields, leaves, strict=True) if leaf is not None}
    return {name: value.detach() for name, value in results.items()} | gradients, upstream


def both(operands: ChainOperands, upstream: dict[str, torch.Tensor], seed: int = 0) -> tuple[dict, dict]:
    """Results of the two kernels."""
    results = emulated.forward(operands, seed)
    return results, emulated.backward(operands, results, upstream["z"], upstream.get("path"), upstream.get("trajectory"), seed)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """All variants, compiled at once."""
    variants = []
    for case in CASES:
        operands = make(case)
        macros = emulated.macros_of(operands)
        given = {"DDVI_NOISE_GRADIENT": int(operands.noise is not None), "DDVI_COEFFICIENT_GRADIENT": 1}
        variants += [("chain_forward", macros | {"DDVI_KEEP": 1})]
        variants += [("chain_backward", macros | {"DDVI_PATH_GRADIENT": int(macros["DDVI_NOISE"] > 0), "DDVI_TRAJECTORY_GRADIENT": 1} | given)]
    emulated.prepare(*variants)


def check(operands: ChainOperands) -> None:
    """Compare all results and gradients with the reference."""
    exact, upstream = expected(operands, torch.float64, "float32")
    plain, _ = expected(operands, torch.float32, operands.precision)
    results, gradients = both(operands, upstream)
    whole = emulated.all_gradients(operands, results, gradients)
    got = results | {f"d_{name}": value for name, value in whole._asdict().items()}
    factor, floor = BUDGET[operands.precision]
    for name, truth in exact.items():
        error, allowed = (got[name] - truth).norm(), factor * (plain[name] - truth).norm() + floor * truth.norm()
        assert error <= allowed, f"{name}: off by {float(error):.3g} in length, allowed {float(allowed):.3g}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_values_and_all_gradients_are_within_the_error_budget(case):
    check(make(case))


LONG = tuple((((2, 100, *shape[2:]), *options) for shape, *options in (SMALL, SMALL_FLOAT32)))  # several pieces of 32 steps


@pytest.mark.parametrize("case", LONG, ids=_name)
def test_a_long_chain_is_streamed_in_pieces(case):
    check(make(case))


@pytest.mark.parametrize("case", [*DEFAULT, LONG[1]], ids=_name)
def test_results_do_not_depend_on_the_order_in_which_warps_run(case):
    operands = make(case)
    _, upstream = expected(operands, torch.float32, "float32")
    first = both(operands, upstream)
    for seed in (1, 123456, 99999999):
        for one, other in zip(first, both(operands, upstream, seed), strict=True):
            assert all(one[name] is None or _equal(one[name], other[name]) for name in one)


def test_a_missing_barrier_shows_in_the_order_of_warps():
    library = emulated.library("race")

    def swapped(seed: int, with_barrier: int) -> list[int]:
        return emulated.call(library, (1, 1), seed, [torch.full((64,), -1, dtype=torch.int32)], [with_barrier])[0].tolist()

    right = [i ^ 32 for i in range(64)]
    assert all(swapped(seed << 16, 1) == right for seed in range(4))
    wrong = [swapped(seed << 16, 0) for seed in range(4)]
    assert all(values != right for values in wrong) and len({tuple(values) for values in wrong}) > 1


def test_draws_are_those_of_the_package():
    count, block, stream, seed, first = 300, 2, 5, (1 << 64) - 7, (1 << 40) - 100
    words, uniforms, normals = torch.empty(count, 4, dtype=torch.int64), torch.empty(count, 4), torch.empty(count, 4)
    pointers = [ctypes.c_void_p(value.data_ptr()) for value in (words, uniforms, normals)]
    emulated.library("draws", **emulated.macros_of(make(SMALL))).draws(ctypes.c_uint64(first), block, stream, ctypes.c_uint64(seed), count, *pointers)
    want = {kind: rng.formula(kind, Draws(seed, first), (count, 12), stream)[0, :, 8:] for kind in ("words", "uniform", "normal")}
    assert torch.equal(words, want["words"]) and torch.equal(uniforms, want["uniform"])
    testing.assert_close(normals, want["normal"].double(), rtol=4e-7, atol=1e-7, name="normals")


def test_without_the_trajectory_the_results_are_the_same_bits():
    operands = make(SMALL)
    whole, bare = emulated.forward(operands), emulated.forward(operands, keep=False)
    assert torch.equal(bare["z"], whole["z"]) and bare["trajectory"] is None


def test_a_unit_at_zero_has_no_gradient_as_in_pytorch():
    operands = make(SMALL)
    zeros = {name: torch.zeros_like(getattr(operands, name)) for name in ("first", "hidden", "time_table")}
    operands = operands._replace(**zeros)
    assert not emulated.forward(operands)["signs"].any()
    check(operands)


@pytest.mark.parametrize("case", WIDE, ids=_name)
@pytest.mark.parametrize("name", ["y_T", "context"])
def test_nan_stays_in_its_row(case, name):
    clean = make(case)
    spoiled = getattr(clean, name).clone()
    spoiled[9, 1] = float("nan")
    got, want = emulated.forward(clean._replace(**{name: spoiled})), emulated.forward(clean)
    assert got["z"][9].isnan().all() and got["path"][9].isnan()
    others = torch.arange(70) != 9
    assert torch.equal(got["z"][others], want["z"][others]) and torch.equal(got["path"][others], want["path"][others])


@pytest.mark.parametrize("value", [7e4, -7e4, 1e30])
def test_what_fp16_cannot_hold_becomes_nan(value):
    operands = make(WIDE[1])
    context = operands.context.clone()
    context[3] = value / operands.first[..., 2].abs().max()  # some activation is beyond the range
    z = emulated.forward(operands._replace(context=context))["z"]
    assert z[3].isnan().all() and z[torch.arange(70) != 3].isfinite().all()
    hidden = operands.hidden.clone()
    hidden[1, 5, 7] = value
    assert emulated.forward(operands._replace(hidden=hidden))["z"].isnan().all()


def test_gradients_of_every_size_are_as_good_as_those_of_size_one():
    operands = make(WIDE[1])
    _, upstream = expected(operands, torch.float64, "float32")
    results, ones = both(operands, upstream)
    sizes = torch.tensor([2.0**-40, 2.0**-20, 1.0, 2.0**10])[torch.arange(70) % 4]  # about 1e-12, 1e-6, 1 and 1e3; rows differ
    scaled = {"z": upstream["z"] * sizes[:, None], "path": upstream["path"] * sizes, "trajectory": upstream["trajectory"] * sizes[:, None]}
    gradients = emulated.backward(operands, results, scaled["z"], scaled["path"], scaled["trajectory"])
    for name in ("y_T", "context", "output"):
        assert torch.equal(gradients[name], ones[name] * sizes[:, None]), name


def test_rows_of_no_group_are_left_alone():
    operands = make(DEFAULT[0])
    starts = operands.starts.clone()
    starts[-1] -= 5  # five rows have a group that does not exist
    operands = operands._replace(starts=starts)
    _, upstream = expected(make(DEFAULT[0]), torch.float32, "bf16")
    results, gradients = both(operands, upstream)
    absent = torch.zeros(45, dtype=torch.bool)
    absent[operands.order[-5:]] = True
    for name, value in (("z", results["z"]), ("d_y_T", gradients["y_T"]), ("d_output", gradients["output"].movedim(0, 1))):
        assert torch.equal(value.isnan().flatten(1).all(1), absent) and value[~absent].isfinite().all(), name
    assert gradients["coefficient_sums"].isfinite().all()


def test_signs_are_those_of_the_reference():
    operands = make(SMALL_FLOAT32, y_T=torch.ones(1, 1))
    results = emulated.forward(operands)
    first, y = operands.first.double(), results["trajectory"][:-1].double()
    before = y @ first.mT + operands.time_table[:, 0].double().flip(0).unsqueeze(1)
    clear = before.abs() > 1e-6
    assert torch.equal(signs.unpack(results["signs"])[..., 0, :][clear], (before > 0)[clear]) and clear.sum() > 100


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))
