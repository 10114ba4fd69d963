"""Operands of the denoising chain and of the sleep term's regression, for tests of the functions that every fused backend has."""

from __future__ import annotations

import torch

from ddvi_fast import _backend, parity, rng, schedules, testing
from ddvi_fast._operands import OF_CONTEXT, OF_LATENTS, OF_NOISE, OF_TABLE, OF_WEIGHTS, ChainOperands, Differentiable, SleepOperands
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.parity import normals
from ddvi_fast.reference import sleep as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

ALL = Differentiable(*[True] * 9)
BACKENDS = [name for name in ("cpp", "triton") if not _backend.unavailable(name)]
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without a GPU the interpreter runs the kernels


def draw_normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normals of a seed."""
    return rng.normal(Draws(seed), shape, rng.START, dtype=dtype)


def device_of(backend: str) -> str:
    """Device on which a backend is tested."""
    return TRITON_DEVICE if backend == "triton" else "cpu"


def check_triton(case, **options) -> dict[str, float]:
    """`parity.check` of the Triton backend."""
    return parity.check(case, "triton", TRITON_DEVICE, **options)


def run_triton(case, **options) -> dict[str, torch.Tensor]:
    """`parity.run` of the Triton backend."""
    return parity.run(case, "triton", TRITON_DEVICE, **options)


def _common(shape, residual):
    """Latents, context, weights by name and whether the network is residual, for (N, T, D, C, H, G)."""
    rows, steps, latent, context, hidden, groups = shape
    network = ResidualMLP(latent, context, steps, hidden, groups=groups, residual=residual)
    lead = (rows,) if groups is None else (groups, rows)
    weights = {name: value.detach() for name, value in network.chain_weights()._asdict().items()}
    return normals(1, *lead, latent), normals(2, *lead, context) if context else None, weights, network.residual


def _moved(operands, device):
    return operands._make(value.to(device) if isinstance(value, torch.Tensor) else value for value in operands)


def chain_operands(shape, residual=None, precision="float32", device="cpu", **changes) -> ChainOperands:
    """Operands of a chain (N, T, D, C, H, G) with given noise; a `state` replaces the noise."""
    y_T, context, weights, residual = _common(shape, residual)
    table = schedules.make("cosine", shape[1]).coefficients("v")
    noise = None if "state" in changes else normals(3, shape[1], *y_T.shape)
    options = {"order": None, "starts": None, "state": None, "offset": 0, "rows_per_sample": max(1, shape[0])} | changes
    operands = ChainOperands(y_T, context, **weights, coefficients=table, noise=noise, residual=residual, precision=precision, **options)
    return _moved(operands, device)


def sleep_operands(shape, loss="squared", residual=None, precision="float32", device="cpu", **changes) -> SleepOperands:
    """Operands of a regression (N, T, D, C, H, G) with given noise and any table; a `state` replaces the noise. The last step occurs."""
    x0, context, weights, residual = _common(shape, residual)
    t = parity.timesteps(x0.shape[:-1], shape[1])
    t[..., -1:] = shape[1] - 1
    noise, options = (
        None if "state" in changes else normals(3, *x0.shape),
        {"order": None, "starts": None, "state": None, "offset": 0, "rows_per_sample": max(1, shape[0])} | changes,
    )
    table = normals(4, shape[1], 5)
    operands = SleepOperands(x0, t, context, **weights, table=table, noise=noise, loss=loss, residual=residual, precision=precision, **options)
    return _moved(operands, device)


def call(module, operands, needed=ALL) -> dict[str, torch.Tensor | None]:
    """Results and gradients by name of the functions of a backend's module, under random upstream gradients."""
    needed = Differentiable(*(need and value is not None for need, value in zip(needed, operands.differentiable, strict=True)))
    if isinstance(operands, ChainOperands):
        signed = module.__name__.startswith(("ddvi_fast.kernels", "ddvi_fast.cuda"))  # keeps signs and outputs too
        values = module.forward(operands, True, True, True) if signed else module.forward(operands, True)
        results = dict(zip(("z", "path", "trajectory"), values[:3], strict=True))
        upstream = [None if value is None else testing.upstream_gradient(value, seed) for seed, value in enumerate(results.values())]
        gradients = module.backward(operands, results["trajectory"], *values[3:], *upstream, needed)
    else:
        kept = module.forward(operands, OF_WEIGHTS + OF_LATENTS + OF_CONTEXT + OF_TABLE + OF_NOISE)
        results = {"loss": kept.loss}
        gradients = module.backward(operands, kept, testing.upstream_gradient(kept.loss), needed)
    return results | {f"d_{name}": value for name, value in gradients._asdict().items()}


def exact_regression(operands: SleepOperands) -> dict[str, torch.Tensor | None]:
    """Loss and gradients of the reference in float64, as `call` gives them."""
    leaves = [None if value is None else value.double().requires_grad_() for value in operands.differentiable]
    x0, context, *weights, table, noise = leaves
    value = reference.denoising_loss(x0, operands.t, context, ChainWeights(*weights), table, noise, operands.loss, operands.residual)
    upstream = testing.upstream_gradient(value.float()).double()
    found = iter(torch.autograd.grad(value, [leaf for leaf in leaves if leaf is not None], upstream))
    gradients = {f"d_{name}": None if leaf is None else next(found) for name, leaf in zip(Differentiable._fields, leaves, strict=True)}
    return {"loss": value.detach()} | gradients


def largest_relative_error(got: dict[str, torch.Tensor | None], exact: dict[str, torch.Tensor | None]) -> float:
    """The largest error of a result or gradient, in length and relative to its own."""
    return max(float((value - exact[name]).norm() / exact[name].norm()) for name, value in got.items() if value is not None)
