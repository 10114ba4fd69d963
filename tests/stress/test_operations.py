"""Generated operands of every operation: all backends give one answer, whatever the layout, the scale, and numbers that are not finite.

The specification is the reference in float64. A backend may overflow where float64 does not, to a number that is not finite, never to a finite one.
Which one it is may differ: an infinite operand may give infinity in one backend and NaN in another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddvi_fast import InputError, _backend, denoisers, ops, schedules, use_backend
from ddvi_fast.parity import free_table, normals
from ddvi_fast.rng import Draws
from tests.stress.public import functions_of
from tests.stress.settings import BAD, LAYOUTS, examples, kinds, operands

STEPS = 3
Call = Callable[[dict[str, Tensor]], dict[str, Tensor]]
ROWS, WIDTHS = st.sampled_from((0, 1, 2, 5, 17)), st.sampled_from((1, 2, 3, 9))
FUSED = [name for name in ("cpp", "triton") if not _backend.unavailable(name)]


@functools.cache
def _denoiser(latent: int, context: int, groups: int | None, dtype: torch.dtype = torch.float32) -> denoisers.ResidualMLP:
    return denoisers.ResidualMLP(latent, context, STEPS, 64, groups=groups, draws=Draws(3)).requires_grad_(False).to(dtype)


def _of_type(denoiser: denoisers.ResidualMLP, like: Tensor) -> denoisers.ResidualMLP:
    return _denoiser(denoiser.latent_dim, denoiser.context_dim, denoiser.groups, like.dtype)


def _value(function: Callable[..., Tensor], **constants: object) -> Call:
    return lambda given: {"value": function(**given, **constants)}


@st.composite
def _pair(draw: st.DrawFn, function: Callable[..., Tensor], names: tuple[str, ...]) -> tuple[dict, Call]:
    """Operands of one shape, some of them without the leading axes of the others."""
    shape = (*draw(st.sampled_from(((), (2,)))), draw(ROWS), draw(WIDTHS))
    made = {name: draw(operands(*shape[-2:])) if number and draw(st.booleans()) else draw(operands(*shape)) for number, name in enumerate(names)}
    if function in (ops.gaussian_kl, ops.gaussian_log_prob):  # mean and log-variance have one shape
        made[names[-1]] = draw(operands(*made[names[-2]].shape))
    return made, _value(function)


@st.composite
def _gaussian(draw: st.DrawFn) -> tuple[dict, Call]:
    made, call = draw(_pair(ops.gaussian_log_likelihood, ("mean", "x")))
    scale = draw(st.sampled_from((1.0, 0.3, 1e-40, 1e20, 0.0, math.inf, math.nan)))
    return made | {"scale": torch.full(() if draw(st.booleans()) else made["mean"].shape[-1:], scale)}, call


@st.composite
def _binomial(draw: st.DrawFn) -> tuple[dict, Call]:
    made, _ = draw(_pair(ops.binomial_log_likelihood, ("logits", "counts")))
    if draw(st.booleans()):
        made["counts"] = made["counts"].clamp(0, 2).round()
    return made, _value(ops.binomial_log_likelihood, total=2)


@st.composite
def _kde(draw: st.DrawFn) -> tuple[dict, Call]:
    width = draw(WIDTHS)
    made = {"z": draw(operands(draw(ROWS), width)), "points": draw(operands(draw(st.sampled_from((1, 2, 19))), width))}
    return made, _value(ops.kde_log_density, bandwidths=draw(st.sampled_from(((1.0,), (0.1, 0.5, 2.0)))), clamp=draw(st.sampled_from((None, 6.0))))


def _squared_mmd(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The root of a rounding error is much larger than it."""
    return {"value": ops.mmd(**given, sigmas=(1.0, 4.0)).square()}


@st.composite
def _mmd(draw: st.DrawFn) -> tuple[dict, Call]:
    width, rows = draw(WIDTHS), st.sampled_from((1, 2, 18))
    return {"x": draw(operands(draw(rows), width)), "y": draw(operands(draw(rows), width))}, _squared_mmd


@st.composite
def _noise(draw: st.DrawFn) -> tuple[dict, Call]:
    shape = (draw(ROWS), draw(WIDTHS))
    t, schedule = torch.arange(shape[0]) % STEPS, schedules.make("cosine", STEPS)
    return {"x0": draw(operands(*shape)), "noise": draw(operands(*shape))}, lambda given: {
        "value": ops.add_noise(given["x0"], t, schedule, noise=given["noise"])[0]
    }


@st.composite
def _states(draw: st.DrawFn, groups: bool = True) -> tuple[denoisers.ResidualMLP, torch.Size]:
    width, number = draw(WIDTHS), 2 if groups and draw(st.booleans()) else None
    return _denoiser(width, draw(st.sampled_from((0, 2))), number), torch.Size((*(() if number is None else (number,)), draw(ROWS), width))


def _with_context(draw: st.DrawFn, denoiser: denoisers.ResidualMLP, shape: torch.Size) -> dict[str, Tensor]:
    return {"context": draw(operands(*shape[:-1], denoiser.context_dim))} if denoiser.context_dim else {}


@st.composite
def _chain(draw: st.DrawFn) -> tuple[dict, Call]:
    denoiser, shape = draw(_states())
    made = {"y_T": draw(operands(*shape)), "noise": normals(5, STEPS, *shape), **_with_context(draw, denoiser, shape)}

    def call(given: dict[str, Tensor]) -> dict[str, Tensor]:
        network = _of_type(denoiser, given["y_T"])
        sample = ops.sample_chain(given["y_T"], given.get("context"), network, free_table(STEPS), noise=given["noise"], return_trajectory=True)
        return {name: value for name, value in sample._asdict().items() if value is not None}

    return made, call


@st.composite
def _trajectory(draw: st.DrawFn) -> tuple[dict, Call]:
    denoiser, shape = draw(_states(groups=False))
    made = {"trajectory": draw(operands(STEPS + 1, *shape)), **_with_context(draw, denoiser, shape)}

    def call(given: dict[str, Tensor]) -> dict[str, Tensor]:
        network = _of_type(denoiser, given["trajectory"])
        return {"value": ops.trajectory_log_ratio(given["trajectory"], given.get("context"), network, free_table(STEPS))}

    return made, call


@st.composite
def _regression(draw: st.DrawFn, by_schedule: bool, losses: Sequence[str] = ops.LOSSES) -> tuple[dict, Call]:
    denoiser, shape = draw(_states())
    made = {"x0": draw(operands(*shape)), "noise": normals(5, *shape), **_with_context(draw, denoiser, shape)}
    t, loss = torch.arange(shape[-2]).expand(shape[:-1]) % STEPS, draw(st.sampled_from(losses))
    schedule = schedules.make("cosine", STEPS)

    def call(given: dict[str, Tensor]) -> dict[str, Tensor]:
        first = (given["x0"], t, given.get("context"), _of_type(denoiser, given["x0"]))
        if by_schedule:
            return {"value": ops.denoising_loss(*first, schedule, parametrisation="v", loss=loss, noise=given["noise"])}
        return {"value": ops.regression(*first, schedule.regression_table("v", 0.5), loss=loss, noise=given["noise"])}

    return made, call


@st.composite
def _log_mean_exp(draw: st.DrawFn) -> tuple[dict, Call]:
    shape = (draw(st.sampled_from((1, 2, 9))), draw(ROWS))
    return {"log_weights": draw(operands(*shape))}, _value(ops.log_mean_exp, dim=0)


OPERATIONS = {
    "add_noise": _noise(),
    "bernoulli_log_likelihood": _pair(ops.bernoulli_log_likelihood, ("logits", "x")),
    "binomial_log_likelihood": _binomial(),
    "denoising_loss": _regression(True),
    "gaussian_kl": _pair(ops.gaussian_kl, ("mean", "log_var")),
    "gaussian_log_likelihood": _gaussian(),
    "gaussian_log_prob": _pair(ops.gaussian_log_prob, ("z", "mean", "log_var")),
    "kde_log_density": _kde(),
    "log_mean_exp": _log_mean_exp(),
    "mmd": _mmd(),
    "regression": _regression(False),
    "sample_chain": _chain(),
    "trajectory_log_ratio": _trajectory(),
}

# Triton's kernels split operands of the denoiser's products into numbers of fp16: operands far beyond this become NaN (kernels/layers.py).
DENOISERS, DENOISER_RANGE = ("denoising_loss", "regression", "sample_chain"), 1000.0


_SMALL = 100.0  # far from the largest number of a type


def test_every_operation_is_here():
    assert set(OPERATIONS) == set(functions_of("ops"))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", OPERATIONS)
def test_backends_give_one_answer(name, backend):
    @examples(12 if backend == "triton" else 40)
    @given(OPERATIONS[name], st.sampled_from(sorted(LAYOUTS)))
    def check(case, layout):
        made, call = case
        with use_backend("reference"):
            exact = call({name: value.double() for name, value in made.items()})
            plain = call(made)
        with use_backend(backend):
            got = call({name: LAYOUTS[layout](value) for name, value in made.items()})
        assert got.keys() == plain.keys()
        overflows = backend == "triton" and _overflows_in_triton(name, made)
        for result, value in got.items():
            _assert_alike(value, plain[result], exact[result], overflows)

    check()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_nan_is_never_answered_by_a_finite_number(name):
    """For each operand: where any of it is NaN, no result of its rows is finite; rows that do not depend on it are what they were."""

    @examples(25)
    @given(OPERATIONS[name], st.data())
    def check(case, data):
        made, call = case
        operand = data.draw(st.sampled_from(sorted(made)))
        if not made[operand].numel():
            return
        place = data.draw(st.integers(0, made[operand].numel() - 1))
        spoilt = {name: value.clone() for name, value in made.items()}
        spoilt[operand].view(-1)[place] = math.nan
        for backend in ("reference", *(FUSED if FUSED == ["cpp"] else FUSED[:1])):
            with use_backend(backend):
                before, after = call(made), call(spoilt)
            for result, value in after.items():
                changed = kinds(value) != kinds(before[result])
                assert value.isnan().any() or not value.numel(), f"{result} of {backend} is finite"
                assert not (changed & ~value.isnan()).any(), f"{result} of {backend} lost a NaN"

    check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_half_precision_is_refused_or_answered_within_its_rounding(name, dtype):
    """Each backend, and the choice of one; the specification is the reference in float64 on the same rounded operands."""

    @examples(12)
    @given(OPERATIONS[name], st.sampled_from(sorted(LAYOUTS)))
    def check(case, layout):
        made, call = case
        half = {name: value.to(dtype) for name, value in made.items()}
        with use_backend("reference"):
            exact = call({name: value.double() for name, value in half.items()})
        answers = {}
        for backend in ("auto", "reference", *FUSED):
            try:
                with use_backend(backend):
                    answers[backend] = call({name: LAYOUTS[layout](value) for name, value in half.items()})
            except InputError as refused:
                assert backend in FUSED and "float32" in str(refused) and "\n" not in str(refused)
        for answer in answers.values():
            for result, value in answer.items():
                _assert_rounded(value, exact[result], dtype)

    check()


# The derivative of the absolute error jumps at zero: rounding in half precision decides its sign, so that no bound holds for it.
_SMOOTH = [loss for loss in ops.LOSSES if loss != "absolute"]
WITH_GRADIENT = OPERATIONS | {"denoising_loss": _regression(True, _SMOOTH), "regression": _regression(False, _SMOOTH)}
# Units of rounding: 4, but the gradient of a chain passes through the roundings of every step, and narrow kernels magnify those of distances.
UNITS = {"sample_chain": 16, "kde_log_density": 8}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_in_half_precision_are_refused_or_within_their_rounding(name, dtype):
    """Gradients of all operands that have some, for moderate operands; the specification is the reference in float64 on the same operands."""

    @examples(8)
    @given(WITH_GRADIENT[name], st.sampled_from(sorted(LAYOUTS)))
    def check(case, layout):
        made, call = case
        half = {name: value.nan_to_num(0.5, 0.5, 0.5).clamp(-2, 2).to(dtype) for name, value in made.items()}
        with use_backend("reference"):
            exact = _gradients(call, {name: value.double() for name, value in half.items()})
        for backend in ("auto", "reference", *FUSED):
            try:
                with use_backend(backend):
                    got = _gradients(call, {name: LAYOUTS[layout](value) for name, value in half.items()})
            except InputError as refused:
                assert backend in FUSED and any(word in str(refused) for word in ("float32", "no gradient")) and "\n" not in str(refused)
                continue
            assert got.keys() == exact.keys()
            for operand, gradient in got.items():
                _assert_rounded(gradient, exact[operand], dtype, UNITS.get(name, 4))

    check()


def _gradients(call: Call, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the operands by name, for an upstream gradient of one in every result; those that no result depends on are left out."""
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    results = [value for value in call(leaves).values() if value.requires_grad]
    if not results:
        return {}
    found = torch.autograd.grad(results, list(leaves.values()), [torch.ones_like(value) for value in results], allow_unused=True)
    return {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("spoilt", ["y_T", "context", "upstream"])
@pytest.mark.parametrize("backend", FUSED)
def test_gradients_of_a_chain_are_finite_only_where_those_of_the_reference_are(backend, spoilt, bad):
    """The other rows' gradients of the start are what they were."""
    given = {"y_T": normals(1, 5, 2), "context": normals(2, 5, 2), "upstream": normals(3, 5, 2)}
    given[spoilt][1, 0] = bad
    with use_backend("reference"):
        expected = _chain_gradients(**given)
    with use_backend(backend):
        got = _chain_gradients(**given)
    assert not all(gradient.isfinite().all() for gradient in expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert not (mine.isfinite() & ~theirs.isfinite()).any()
    rows = [0, 2, 3, 4]
    torch.testing.assert_close(got[0][rows], expected[0][rows], rtol=1e-4, atol=1e-5)


def _chain_gradients(y_T: Tensor, context: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradients of start, context and weights."""
    denoiser = denoisers.ResidualMLP(2, 2, STEPS, 64, draws=Draws(3))
    wanted = (y_T.clone().requires_grad_(), context.clone().requires_grad_(), *denoiser.parameters())
    sample = ops.sample_chain(wanted[0], wanted[1], denoiser, free_table(STEPS), noise=normals(5, STEPS, *y_T.shape))
    return torch.autograd.grad(sample.z, wanted, upstream)


def _overflows_in_triton(name: str, made: dict[str, Tensor]) -> bool:
    """Whether operands are beyond the range of the denoiser's products, or counts of 2 draws so far outside that their log-factorials have poles."""
    if name == "binomial_log_likelihood":
        return bool(((made["counts"] <= -1) | (made["counts"] >= 3)).any())
    return name in DENOISERS and _largest(made) > DENOISER_RANGE


def _largest(made: dict[str, Tensor]) -> float:
    """The largest finite magnitude of any operand."""
    return max((value.abs()[value.isfinite()].max().item() for value in made.values() if value.isfinite().any()), default=0.0)


def _assert_alike(got: Tensor, plain: Tensor, exact: Tensor, overflows: bool) -> None:
    """Finite only where float64 is, and there close to it; finite where the reference in float32 is as well, unless the backend `overflows`."""
    assert got.shape == plain.shape and got.dtype == plain.dtype
    here, there, truth = kinds(got), kinds(plain), kinds(exact)
    assert not ((truth > 0) & (here == 0)).any(), "finite where float64 is not"
    # Where float64 is finite and float32 overflows, the order of sums decides how; elsewhere both are finite.
    finite = (here == 0) & (truth == 0)
    beyond = (here > 0) & (there == 0) & (truth == 0)
    assert overflows or not beyond.any(), f"{got[beyond][:3].tolist()} where the reference is finite"
    off, allowed = (got.double() - exact).abs()[finite], _budget(plain, exact)[finite]
    assert (off <= allowed).all(), f"off by {off[off > allowed][:3].tolist()}, allowed {allowed[off > allowed][:3].tolist()}"


def _assert_rounded(got: Tensor, exact: Tensor, dtype: torch.dtype, units: int = 4) -> None:
    """In the type `dtype`, finite only where float64 is, and there near it in units of the largest result."""
    assert got.dtype == dtype and got.shape == exact.shape
    here, truth, limits = kinds(got), kinds(exact), torch.finfo(dtype)
    assert not ((truth > 0) & (here == 0)).any(), "finite where float64 is not"
    assert not ((truth == 0) & (here > 0) & (exact.abs() < _SMALL)).any(), "lost, and no large number"
    finite = (here == 0) & (truth == 0)
    if finite.any():
        off, size = (got.double() - exact).abs()[finite].max(), exact[finite].abs().max()
        assert off <= units * limits.eps * (size + 1), f"off by {off}, with a largest result of {size}"


def _budget(plain: Tensor, exact: Tensor) -> Tensor:
    """Four times the largest error of the reference in float32, and some rounding of the largest result."""
    finite = exact.isfinite() & plain.isfinite()
    if not finite.any():
        return torch.full_like(exact, math.inf)
    error, size = (plain.double() - exact)[finite].abs().max(), exact[finite].abs().max()
    return (4 * error + 1e-5 * (size + 1)).expand_as(exact)
