"""Cases in which every backend must agree with the float64 reference, and functions that run and compare them, for tests and devices.

A case is a public operation on inputs of an awkward size. `check` compares values and every gradient under random upstream gradients;
the budget is that of `testing.assert_within_budget`: twice the error of the reference in float32, plus a floor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks, denoisers, ops, rng, schedules, testing
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

# Half a unit of each precision: the rounding errors of the reference may cancel where those of another order do not.
_ONE_KINK = 2.0**-5  # of the norm of the gradients of 70 rows, if one of their ReLUs switches
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
# The same for rows with an index of their groups: N counts the rows of all groups, of which the second has none.
INDEXED_SHAPES = ((0, 2, 2, 2, 64, 3), (1, 3, 1, 0, 64, 10), (65, 2, 16, 7, 128, 3), (257, 5, 2, 2, 64, 10), (1000, 2, 3, 64, 256, 4))
SMALL_INDEXED_SHAPES = ((0, 2, 2, 2, 64, 3), (3, 2, 5, 0, 64, 4), (70, 2, 2, 7, 64, 3))
NOISE_SHAPES = ((0, 2), (1, 1), (2, 65, 3), (257, 16), (1000, 33), (63, 64))
ELBO_SHAPES = ((0, 3), (1, 1), (3, 7, 17), (65, 784), (1000, 2))
KDE_SHAPES = ((0, 3, 2), (1, 1, 1), (2, 63, 3), (65, 64, 5), (5, 1100, 2), (3, 513, 64), (257, 1000, 16), (64, 65, 33))
SMALL_KDE_SHAPES = ((0, 3, 2), (1, 1, 1), (2, 63, 3), (5, 130, 2))
MMD_SHAPES = ((1, 1, 1), (2, 3, 2), (63, 65, 3), (200, 131, 17), (193, 400, 113), (257, 64, 784))
SMALL_MMD_SHAPES = ((1, 1, 1), (2, 3, 2), (33, 41, 5))


@dataclass(frozen=True)
class Case:
    """One operation on inputs of given sizes.

    Args:
        operation: Name of the operation.
        name: Description of the sizes and options.
        make: Function that returns the float32 inputs by name, and the function of these inputs that returns its outputs by name.
        constants: Names of the inputs without a gradient.
        floor: Floor of the error budget, relative to the largest value; drawn normals differ by a few units in the last place.
        layouts: Layouts of the inputs that make sense.
    """

    operation: str
    name: str
    make: Callable[[], tuple[dict[str, Tensor], Callable[..., dict[str, Tensor]]]]
    constants: tuple[str, ...] = ()
    floor: float = 2e-6
    layouts: tuple[str, ...] = LAYOUTS

    def __str__(self) -> str:
        return f"{self.operation} {self.name}"


def cases(operation: str, small: bool = False) -> list[Case]:
    """The cases of an operation.

    Args:
        operation: ``noise``, ``chain``, ``sleep``, ``elbo``, ``kde`` or ``mmd``.
        small: Whether to give only cases that are quick enough for Triton's interpreter (default False).

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
    upstream: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Outputs and gradients (``d_`` and the name of the input) of a case.

    Args:
        case: One of `cases`.
        backend: Name of the backend, as in `use_backend`.
        device: Device of the inputs (default "cpu").
        dtype: Element type of the inputs (default float32).
        precision: Precision of a denoiser's hidden products, as in `sample_chain`.
        layout: Layout of the inputs; ``strided`` ones have gaps full of NaN, ``expanded`` ones repeat their first row without memory for
            the others.
        upstream: Names of the outputs that have an upstream gradient (default None: all).
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
        used = {name: value for name, value in outputs.items() if upstream is None or name in upstream}
        given_upstream = [testing.upstream_gradient(value.detach().float(), seed).to(value.dtype) for seed, value in enumerate(used.values())]
        gradients = torch.autograd.grad(list(used.values()), list(leaves.values()), given_upstream)
    return {name: value.detach() for name, value in outputs.items()} | {f"d_{name}": value for name, value in zip(leaves, gradients, strict=True)}


def check(
    case: Case,
    backend: str,
    device: torch.device | str = "cpu",
    *,
    precision: str | None = None,
    layout: str = "contiguous",
    upstream: Collection[str] | None = None,
) -> dict[str, float]:
    """Compare a backend with the reference in float64; the arguments are those of `run`.

    Returns:
        The errors of outputs and gradients by name, relative to the largest value.

    Raises:
        AssertionError: An output or gradient is outside the error budget.
    """
    options = {"layout": layout, "upstream": upstream}
    got = run(case, backend, device, precision=precision, **options)
    exact = run(case, "reference", device, torch.float64, **options)
    plain = run(case, "reference", device, precision=None if precision == "tf32" else precision, **options)
    for name, value in got.items():
        label = f"{case}: {name}"
        if precision in _ROUNDING:
            _assert_length_within_budget(value, plain[name], exact[name], _ROUNDING[precision], label)
        else:
            testing.assert_within_budget(value, plain[name], exact[name], floor=case.floor, name=label)
    return {name: relative_error(value, exact[name]) for name, value in got.items()}


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Largest error relative to the largest value; 0 for nothing but zeros."""
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    return float((got - exact).abs().max()) / scale if scale > 0 else 0.0


def _assert_length_within_budget(got: Tensor, plain: Tensor, exact: Tensor, floor: float, name: str) -> None:
    """Compare norms of whole tensors: a rounded state on the other side of a kink may change the gradient of a single row by any amount."""
    floor = max(floor, _ONE_KINK) if ": d_" in name else floor
    error, allowed = (got - exact).norm(), 2 * (plain - exact).norm() + floor * exact.norm()
    assert error <= allowed, f"{name}: off by {float(error):.3g} in length, allowed {float(allowed):.3g}"


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value,
    "strided": lambda value: testing.strided(value) if value.dim() and value.is_floating_point() else value,
    "expanded": lambda value: value[..., :1, :].expand_as(value) if value.dim() > 1 and value.is_floating_point() else value,
}


def normals(seed: int, *shape: int) -> Tensor:
    """Standard normals of a seed, from the specification of the random numbers."""
    return rng.formula("normal", Draws(seed), shape if len(shape) > 1 else (1, *shape), 0)[0].reshape(shape)


def timesteps(shape: tuple[int, ...], num_steps: int) -> Tensor:
    """Random 0-based timesteps, int64 of a shape."""
    return rng.formula("words", Draws(8), (*shape, 1), 0)[0, ..., 0] % num_steps


def row_groups(shape: tuple[int, ...], num_groups: int) -> Tensor:
    """Random groups of rows, int64 of a shape; the second of three or more groups is empty."""
    groups = rng.formula("words", Draws(6), (*shape, 1), 0)[0, ..., 0] % num_groups
    return torch.where(groups == 1, 0, groups) if num_groups > 2 else groups


def free_table(steps: int) -> Tensor:
    """A table of the chain [steps, 5] whose columns do not depend on each other: no schedule gives it (docs/method.md, section 7)."""
    weight_state, weight_output, deviation, scale, beta = normals(4, 5, steps)
    columns = (0.9 + 0.05 * weight_state, 0.3 + 0.1 * weight_output, 0.5 * (0.3 * deviation).exp(), 0.9 + 0.05 * scale, 0.5 * (0.3 * beta).exp())
    return torch.stack(columns, dim=1)


def plain_case(operation: str, name: str, function: Callable[..., Tensor], constants: tuple[str, ...] = (), **inputs: Tensor) -> Case:
    """Case of a function with one result."""
    return Case(operation, name, lambda: (inputs, lambda **given: {"value": function(**given)}), constants)


def noise_case(shape: tuple[int, ...], source: str) -> Case:
    """Noising of latents of a shape, with noise that is ``given`` or ``drawn``."""
    schedule = schedules.make("cosine", 5)

    def make():
        inputs = {"x0": normals(1, *shape), "betas": schedule.betas.float()}
        if source == "given":
            inputs["noise"] = normals(2, *shape)
        return inputs, call

    def call(x0, betas, noise=None):
        t, draws = timesteps(shape[:-1], 5).to(x0.device), None if noise is not None else Draws(9, (1 << 33) - 3)
        return {"value": ops.add_noise(x0, t, schedules.NoiseSchedule(betas.double()), noise=noise, draws=draws)[0]}

    return Case("noise", f"{list(shape)} {source}", make)


class _With:
    """A denoiser with other parameters, so that these can be leaves of any dtype, device and layout."""

    def __init__(self, denoiser: ResidualMLP, parameters: dict[str, Tensor]) -> None:
        self._denoiser, self._parameters = denoiser, parameters

    def __getattr__(self, name: str):
        return getattr(self._denoiser, name)

    def chain_weights(self):
        given = self._parameters
        table = given["embedding"] + given["bias"].unsqueeze(-3)
        return ChainWeights(given["first"], given["hidden"], given["last"], given["last_bias"], table)


def _network(shape: tuple, residual: bool | None, samples: tuple[int, ...], indexed: bool) -> tuple[ResidualMLP, dict[str, Tensor], tuple[int, ...]]:
    """A denoiser, its parameters and a context by name, and the shape of the rows."""
    rows, steps, latent, context_width, hidden, groups = shape
    denoiser = denoisers.ResidualMLP(latent, context_width, steps, hidden, groups=groups, residual=residual, draws=Draws(7))
    inputs = {name: parameter.detach() for name, parameter in denoiser.named_parameters()}
    lead = (*samples, rows) if groups is None or indexed else (groups, *samples, rows)
    if context_width:
        inputs["context"] = normals(2, *lead, context_width)
    return denoiser, inputs, lead


def chain_case(shape: tuple, source: str, residual: bool | None = None, samples: tuple[int, ...] = (), indexed: bool = False) -> Case:
    """Chain of a shape (N, T, D, C, H, G) for some leading axes of samples, with noise that is ``given`` or ``drawn``, or ``deterministic``.

    With an index of groups the axis G of the rows is absent, and the table of a stochastic chain is free.
    """
    steps, latent = shape[1:3]

    def make():
        denoiser, inputs, lead = _network(shape, residual, samples, indexed)
        inputs["y_T"] = normals(1, *lead, latent)
        inputs["coefficients"] = schedules.make("cosine", steps).coefficients("v", eta=0.0 if source == "deterministic" else 1.0)
        if indexed and source != "deterministic":
            inputs["coefficients"] = free_table(steps)
        if source == "given":
            inputs["noise"] = normals(3, steps, *lead, latent)

        def call(y_T, coefficients, context=None, noise=None, precision=None, **parameters):
            draws = Draws((1 << 63) + 5, 77) if source == "drawn" else None
            network, options = _With(denoiser, parameters), {"draws": draws, "noise": noise, "precision": precision}
            options["groups"] = row_groups(lead, shape[-1]).to(y_T.device) if indexed else None
            sample = ops.sample_chain(y_T, context, network, coefficients, return_trajectory=source != "drawn", **options)
            return {name: value for name, value in sample._asdict().items() if value is not None}

        return inputs, call

    return Case("chain", f"{shape} {source}{' indexed' * indexed}", make, floor=5e-6 * max(1.0, steps / 20))  # differences grow along the steps


def sleep_case(
    shape: tuple,
    source: str,
    loss: str,
    parametrisation: str,
    residual: bool | None = None,
    samples: tuple[int, ...] = (),
    indexed: bool = False,
) -> Case:
    """Regression of a shape (N, T, D, C, H, G) for some leading axes of samples, with noise that is ``given`` or ``drawn``.

    Its table is that of a parametrisation, or of normals for ``random``. With an index of groups the axis G of the rows is absent.
    """
    steps, latent = shape[1:3]

    def make():
        denoiser, inputs, lead = _network(shape, residual, samples, indexed)
        inputs["x0"] = normals(1, *lead, latent)
        inputs["table"] = normals(4, steps, 5) if parametrisation == "random" else _regression_table(steps, parametrisation, latent)
        if source == "given":
            inputs["noise"] = normals(3, *lead, latent)

        def call(x0, table, context=None, noise=None, precision=None, **parameters):
            t, draws = timesteps(lead, steps).to(x0.device), Draws((1 << 63) + 11, 12) if source == "drawn" else None
            options = {"loss": loss, "draws": draws, "noise": noise, "precision": precision}
            options["groups"] = row_groups(lead, shape[-1]).to(x0.device) if indexed else None
            return {"value": ops.regression(x0, t, context, _With(denoiser, parameters), table, **options)}

        return inputs, call

    return Case("sleep", f"{shape} {source} {loss} {parametrisation}{' indexed' * indexed}", make, floor=1e-5)


def _regression_table(steps: int, parametrisation: str, latent: int) -> Tensor:
    return schedules.make("cosine", steps).regression_table(parametrisation, 1 / latent)


def elbo_cases(shape: tuple[int, ...]) -> Iterator[Case]:
    """Every reduction of the bound, on operands of a shape."""
    first, second, third = (normals(seed, *shape) for seed in range(3))
    few = second if len(shape) == 2 else second[0]  # rows under a missing leading axis
    yield plain_case("elbo", f"bernoulli {list(shape)}", ops.bernoulli_log_likelihood, logits=8 * first, x=torch.sigmoid(few))
    yield plain_case("elbo", f"gaussian {list(shape)}", ops.gaussian_log_likelihood, mean=first, x=few, scale=third.exp())
    yield plain_case(
        "elbo",
        f"gaussian of one scale {list(shape)}",
        ops.gaussian_log_likelihood,
        mean=first,
        x=second,
        scale=torch.tensor(0.3, dtype=torch.float32, device="cpu"),
    )
    yield binomial_case(f"binomial {list(shape)}", 8 * first, (second.abs() > 1).float() + (third > 0).float(), 2)
    yield plain_case("elbo", f"gaussian_kl {list(shape)}", ops.gaussian_kl, mean=first, log_var=second)
    yield plain_case("elbo", f"gaussian_log_prob {list(shape)}", ops.gaussian_log_prob, z=first, mean=few, log_var=few.flip(-1))
    if shape[0]:
        yield plain_case("elbo", f"log_mean_exp {list(shape)}", lambda log_weights: ops.log_mean_exp(log_weights, 0), log_weights=30 * first)


def binomial_case(name: str, logits: Tensor, counts: Tensor, total: float) -> Case:
    """Binomial log-likelihood, whose counts have no gradient."""
    call = lambda logits, counts: ops.binomial_log_likelihood(logits, counts, total)  # noqa: E731
    return plain_case("elbo", name, call, ("counts",), logits=logits, counts=counts)


def kde_case(z: Tensor, points: Tensor, bandwidths: Collection[float] = (0.1, 0.3, 1.0, 3.0), clamp: float | None = None) -> Case:
    """Kernel density at positions `z` under kernels on `points`."""
    name = f"{len(z)} at {len(points)} in {z.shape[1]} clamp {clamp}"
    return plain_case("kde", name, lambda z, points: ops.kde_log_density(z, points, bandwidths, clamp), z=z, points=points)


def mmd_case(first: int, second: int, width: int) -> Case:
    """Discrepancy between sets of some sizes."""
    x, y = normals(1, first, width), normals(2, second, width) + 0.4
    case = plain_case("mmd", f"{first} and {second} in {width}", lambda x, y: ops.mmd(x, y, (1.0, 4.0, 20.0)), x=x, y=y)
    return replace(case, floor=3e-6)


def _noise_cases(small: bool) -> Iterator[Case]:
    return (noise_case(shape, source) for shape in (NOISE_SHAPES[:3] if small else NOISE_SHAPES) for source in ("given", "drawn"))


def _chain_cases(small: bool) -> Iterator[Case]:
    for indexed, shapes in _denoiser_shapes(small):
        for shape in shapes:
            for source in ("given", "drawn", "deterministic"):
                yield chain_case(shape, source, indexed=indexed)


def _denoiser_shapes(small: bool) -> Iterator[tuple[bool, tuple]]:
    """Shapes of chains and regressions, and whether the rows have an index of their groups."""
    yield False, SMALL_CHAIN_SHAPES if small else CHAIN_SHAPES
    yield True, SMALL_INDEXED_SHAPES if small else INDEXED_SHAPES


def _sleep_cases(small: bool) -> Iterator[Case]:
    for indexed, shapes in _denoiser_shapes(small):
        for number, shape in enumerate(shapes):
            for source in ("given", "drawn"):
                yield sleep_case(shape, source, ops.LOSSES[number % 3], schedules.PARAMETRISATIONS[number % 4], indexed=indexed)


def _elbo_cases(small: bool) -> Iterator[Case]:
    return (case for shape in (ELBO_SHAPES[:3] if small else ELBO_SHAPES) for case in elbo_cases(shape))


def _kde_cases(small: bool) -> Iterator[Case]:
    for rows, count, width in SMALL_KDE_SHAPES if small else KDE_SHAPES:
        for clamp in (None, 6.0):
            yield kde_case(normals(1, rows, width), normals(2, count, width), clamp=clamp)


def _mmd_cases(small: bool) -> Iterator[Case]:
    return (mmd_case(*shape) for shape in (SMALL_MMD_SHAPES if small else MMD_SHAPES))


_CASES = {"noise": _noise_cases, "chain": _chain_cases, "sleep": _sleep_cases, "elbo": _elbo_cases, "kde": _kde_cases, "mmd": _mmd_cases}
