"""The cases in which every backend must agree with the float64 reference, and how one is run: the same for tests and for a GPU at hand.

A case is a public operation on inputs of an awkward size. `check` compares values and every gradient under random upstream gradients;
the budget is that of `testing.assert_within_budget`: twice the error of the reference in float32, plus a floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks, denoisers, ops, rng, schedules, testing
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

# Half a unit of each precision: where the reference's own rounding errors happen to cancel, those of another order need not.
_ROUNDING = {"bf16": 2.0**-9, "fp16": 2.0**-12, "tf32": 2.0**-12}
LAYOUTS = ("contiguous", "strided", "expanded")

# N, T, D, C, H, G: every size of the contract at least once, small ones with large ones.
CHAIN_SHAPES = (
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, 10),
    (63, 2, 3, 7, 128, 3),
    (64, 5, 5, 64, 64, None),
    (65, 5, 16, 1, 128, 1),
    (257, 2, 33, 2, 64, 3),
    (2, 2, 64, 0, 256, None),
    (1000, 5, 2, 2, 128, None),
    (63, 40, 2, 2, 128, None),
    (64, 100, 3, 0, 64, None),
)
SMALL_CHAIN_SHAPES = ((0, 2, 2, 2, 64, None), (1, 2, 1, 0, 64, None), (3, 3, 2, 2, 64, None), (5, 2, 5, 7, 64, 2), (19, 2, 3, 2, 128, None))
NOISE_SHAPES = ((0, 2), (1, 1), (2, 65, 3), (257, 16), (1000, 33), (63, 64))
ELBO_SHAPES = ((0, 3), (1, 1), (3, 7, 17), (65, 784), (1000, 2))
KDE_SHAPES = ((0, 3, 2), (1, 1, 1), (2, 63, 3), (65, 64, 5), (5, 1100, 2), (3, 513, 64), (257, 1000, 16), (64, 65, 33))
SMALL_KDE_SHAPES = ((0, 3, 2), (1, 1, 1), (2, 63, 3), (5, 130, 2))
MMD_SHAPES = ((1, 1, 1), (2, 3, 2), (63, 65, 3), (200, 131, 17), (193, 400, 113), (257, 64, 784))
SMALL_MMD_SHAPES = ((1, 1, 1), (2, 3, 2), (33, 41, 5))


@dataclass(frozen=True)
class Case:
    """One operation on given sizes: `make()` gives its float32 inputs by name and the function to call with them, which returns outputs by name."""

    operation: str
    name: str
    make: Callable[[], tuple[dict[str, Tensor], Callable[..., dict[str, Tensor]]]]
    constants: tuple[str, ...] = ()  # inputs without a gradient
    floor: float = 2e-6  # of the error budget; drawn normals differ by a few units in the last place
    layouts: tuple[str, ...] = LAYOUTS

    def __str__(self) -> str:
        return f"{self.operation} {self.name}"


def cases(operation: str, small: bool = False) -> list[Case]:
    """The cases of `noise`, `chain`, `sleep`, `elbo`, `kde` or `mmd`; `small` ones are quick enough for Triton's interpreter.

    Example:
        >>> check(cases("mmd", small=True)[1], "reference")["value"] < 1e-5
        True
    """
    return list(_CASES[_checks.choice(operation, _CASES, "operation")](small))


def run(
    case: Case,
    backend: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    precision: str | None = None,
    layout: str = "contiguous",
) -> dict[str, Tensor]:
    """Outputs and gradients (``d_`` and the name of the input) of a case.

    Args:
        case: one of `cases`.
        backend: as of `use_backend`.
        device, dtype: where and in what the inputs are.
        precision: of a denoiser's hidden products, as of `sample_chain`.
        layout: ``strided`` inputs have gaps full of NaN, ``expanded`` ones repeat their first row without memory for the others.
    """
    inputs, call = case.make()
    leaves, given = {}, {}
    for name, value in inputs.items():
        leaf = value.to(device, dtype if value.is_floating_point() else value.dtype).detach().clone()
        if name not in case.constants:
            leaves[name] = leaf.requires_grad_()
        given[name] = _LAYOUTS[_checks.choice(layout, _LAYOUTS, "layout")](leaf)
    with _backend.use_backend(backend):
        outputs = call(**given, **({} if precision is None else {"precision": precision}))
        upstream = [testing.upstream_gradient(value.detach().float(), seed).to(value.dtype) for seed, value in enumerate(outputs.values())]
        gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream)
    return {name: value.detach() for name, value in outputs.items()} | {f"d_{name}": value for name, value in zip(leaves, gradients, strict=True)}


def check(
    case: Case, backend: str, device: torch.device | str = "cpu", *, precision: str | None = None, layout: str = "contiguous"
) -> dict[str, float]:
    """Compare a backend with the reference in float64; the errors found, relative to the largest value, by name.

    Raises:
        AssertionError: an output or gradient is outside the error budget.
    """
    exact = run(case, "reference", device, torch.float64, layout=layout)
    plain = run(case, "reference", device, precision=None if precision == "tf32" else precision, layout=layout)
    got = run(case, backend, device, precision=precision, layout=layout)
    for name, value in got.items():
        label = f"{case}: {name}"
        if precision in _ROUNDING:
            _assert_length_within_budget(value, plain[name], exact[name], _ROUNDING[precision], label)
        else:
            testing.assert_within_budget(value, plain[name], exact[name], floor=case.floor, name=label)
    return {name: _relative_error(value, exact[name]) for name, value in got.items()}


def _assert_length_within_budget(got: Tensor, plain: Tensor, exact: Tensor, floor: float, name: str) -> None:
    """As `testing.assert_within_budget`, for the length of the whole: a rounded state on the other side of a kink changes single rows at will."""
    error, allowed = (got - exact).norm(), 2 * (plain - exact).norm() + floor * exact.norm()
    assert error <= allowed, f"{name}: off by {float(error):.3g} in length, allowed {float(allowed):.3g}"


def _relative_error(got: Tensor, exact: Tensor) -> float:
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    return float((got - exact).abs().max()) / scale if scale > 0 else 0.0


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value,
    "strided": lambda value: testing.strided(value) if value.dim() and value.is_floating_point() else value,
    "expanded": lambda value: value[..., :1, :].expand_as(value) if value.dim() > 1 and value.is_floating_point() else value,
}


def _normals(seed: int, *shape: int) -> Tensor:
    return rng.formula("normal", Draws(seed), shape if len(shape) > 1 else (1, *shape), 0)[0].reshape(shape)


def _steps(shape: tuple[int, ...], num_steps: int) -> Tensor:
    return rng.formula("words", Draws(8), (*shape, 1), 0)[0, ..., 0] % num_steps


def _noise_cases(small: bool) -> Iterator[Case]:
    schedule = schedules.make("cosine", 5)
    for shape in NOISE_SHAPES[:3] if small else NOISE_SHAPES:
        for source in ("given", "drawn"):

            def make(shape=shape, source=source):
                inputs = {"x0": _normals(1, *shape), "betas": schedule.betas.float()}
                if source == "given":
                    inputs["noise"] = _normals(2, *shape)

                def call(x0, betas, noise=None):
                    t, draws = _steps(shape[:-1], 5).to(x0.device), None if noise is not None else Draws(9, (1 << 33) - 3)
                    return {"value": ops.add_noise(x0, t, schedules.NoiseSchedule(betas.double()), noise=noise, draws=draws)[0]}

                return inputs, call

            yield Case("noise", f"{list(shape)} {source}", make)


def _network(shape: tuple) -> tuple[denoisers.ResidualMLP, dict[str, Tensor], tuple[int, ...]]:
    """A denoiser, its parameters and a context by name, and the shape of the rows."""
    rows, steps, latent, context_width, hidden, groups = shape
    denoiser = denoisers.ResidualMLP(latent, context_width, steps, hidden, groups=groups, draws=Draws(7))
    inputs = {name: parameter.detach() for name, parameter in denoiser.named_parameters()}
    lead = (rows,) if groups is None else (groups, rows)
    if context_width:
        inputs["context"] = _normals(2, *lead, context_width)
    return denoiser, inputs, lead


class _With:
    """A denoiser with other parameters, so that these can be leaves of any dtype, device and layout."""

    def __init__(self, denoiser: denoisers.ResidualMLP, parameters: dict[str, Tensor]) -> None:
        self._denoiser, self._parameters = denoiser, parameters

    def __getattr__(self, name: str):
        return getattr(self._denoiser, name)

    def chain_weights(self):
        given = self._parameters
        table = given["embedding"] + given["bias"].unsqueeze(-3)
        return ChainWeights(given["first"], given["hidden"], given["last"], given["last_bias"], table)


def _chain_cases(small: bool) -> Iterator[Case]:
    for shape in SMALL_CHAIN_SHAPES if small else CHAIN_SHAPES:
        for source in ("given", "drawn", "deterministic"):

            def make(shape=shape, source=source):
                denoiser, inputs, lead = _network(shape)
                steps, latent = shape[1:3]
                inputs["y_T"] = _normals(1, *lead, latent)
                inputs["coefficients"] = schedules.make("cosine", steps).coefficients("v", eta=0.0 if source == "deterministic" else 1.0)
                if source == "given":
                    inputs["noise"] = _normals(3, steps, *lead, latent)

                def call(y_T, coefficients, context=None, noise=None, precision=None, **parameters):
                    draws = Draws((1 << 63) + 5, 77) if source == "drawn" else None
                    network, options = _With(denoiser, parameters), {"draws": draws, "noise": noise, "precision": precision}
                    sample = ops.sample_chain(y_T, context, network, coefficients, return_trajectory=source != "drawn", **options)
                    return {name: value for name, value in sample._asdict().items() if value is not None}

                return inputs, call

            yield Case("chain", f"{shape} {source}", make, floor=5e-6 * max(1.0, shape[1] / 20))  # differences grow along the steps


def _sleep_cases(small: bool) -> Iterator[Case]:
    for number, shape in enumerate(SMALL_CHAIN_SHAPES if small else CHAIN_SHAPES):
        loss, parametrisation = ops.LOSSES[number % 3], schedules.PARAMETRISATIONS[number % 4]
        for source in ("given", "drawn"):

            def make(shape=shape, source=source, loss=loss, parametrisation=parametrisation):
                denoiser, inputs, lead = _network(shape)
                steps, latent = shape[1:3]
                inputs["x0"] = _normals(1, *lead, latent)
                inputs["table"] = schedules.make("cosine", steps).regression_table(parametrisation, 1 / latent)
                if source == "given":
                    inputs["noise"] = _normals(3, *lead, latent)

                def call(x0, table, context=None, noise=None, precision=None, **parameters):
                    t, draws = _steps(tuple(lead), steps).to(x0.device), Draws(9, 5) if source == "drawn" else None
                    options = {"loss": loss, "draws": draws, "noise": noise, "precision": precision}
                    return {"value": ops.regression(x0, t, context, _With(denoiser, parameters), table, **options)}

                return inputs, call

            yield Case("sleep", f"{shape} {source} {loss} {parametrisation}", make, floor=1e-5)


def _elbo_cases(small: bool) -> Iterator[Case]:
    for shape in ELBO_SHAPES[:3] if small else ELBO_SHAPES:
        first, second, third = (_normals(seed, *shape) for seed in range(3))
        few = second if len(shape) == 2 else second[0]  # rows under a missing leading axis
        yield _plain("elbo", f"bernoulli {list(shape)}", ops.bernoulli_log_likelihood, logits=8 * first, x=torch.sigmoid(few))
        yield _plain("elbo", f"gaussian {list(shape)}", ops.gaussian_log_likelihood, mean=first, x=few, scale=third.exp())
        yield _plain("elbo", f"gaussian of one scale {list(shape)}", ops.gaussian_log_likelihood, mean=first, x=second, scale=torch.tensor(0.3))
        counts, two = (second.abs() > 1).float() + (third > 0).float(), lambda logits, counts: ops.binomial_log_likelihood(logits, counts, 2)
        yield _plain("elbo", f"binomial {list(shape)}", two, ("counts",), logits=8 * first, counts=counts)
        yield _plain("elbo", f"gaussian_kl {list(shape)}", ops.gaussian_kl, mean=first, log_var=second)
        yield _plain("elbo", f"gaussian_log_prob {list(shape)}", ops.gaussian_log_prob, z=first, mean=few, log_var=few.flip(-1))
        if shape[0]:
            yield _plain("elbo", f"log_mean_exp {list(shape)}", lambda log_weights: ops.log_mean_exp(log_weights, 0), log_weights=30 * first)


def _kde_cases(small: bool) -> Iterator[Case]:
    for rows, count, width in SMALL_KDE_SHAPES if small else KDE_SHAPES:
        for clamp in (None, 6.0):

            def density(z, points, clamp=clamp):
                return ops.kde_log_density(z, points, (0.1, 0.3, 1.0, 3.0), clamp)

            yield _plain("kde", f"{rows} at {count} in {width} clamp {clamp}", density, z=_normals(1, rows, width), points=_normals(2, count, width))


def _mmd_cases(small: bool) -> Iterator[Case]:
    for first, second, width in SMALL_MMD_SHAPES if small else MMD_SHAPES:

        def discrepancy(x, y):
            return ops.mmd(x, y, (1.0, 4.0, 20.0))

        # Equal rows are left out: their distance is all rounding.
        case = _plain("mmd", f"{first} and {second} in {width}", discrepancy, x=_normals(1, first, width), y=_normals(2, second, width) + 0.4)
        yield replace(case, floor=3e-6, layouts=("contiguous", "strided"))


def _plain(operation: str, name: str, function: Callable[..., Tensor], constants: tuple[str, ...] = (), **inputs: Tensor) -> Case:
    """A case of a function with one result."""
    return Case(operation, name, lambda: (inputs, lambda **given: {"value": function(**given)}), constants)


_CASES = {"noise": _noise_cases, "chain": _chain_cases, "sleep": _sleep_cases, "elbo": _elbo_cases, "kde": _kde_cases, "mmd": _mmd_cases}
