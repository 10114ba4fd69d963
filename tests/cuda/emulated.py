"""The chain's CUDA sources compiled for the CPU (tests/cuda/emulation.h), and calls of them with operands of the chain."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.kernels import signs
from ddvi_fast.reference.chain import ChainWeights

COMPILER = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
PRECISIONS = {"bf16": 0, "fp16": 1, "float32": 2}
ROWS = 8  # of a program
_HERE = Path(__file__).resolve().parent


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def prepare(*variants: tuple[str, dict[str, int]]) -> None:
    """Compile several sources with macros at once."""
    _folder()  # made by one thread
    different = {(source, tuple(sorted(macros.items()))) for source, macros in variants}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda variant: _library(*variant), different))


def library(source: str, **macros: int) -> ctypes.CDLL:
    """A source of this folder, compiled with macros."""
    return _library(source, tuple(sorted(macros.items())))


@functools.cache
def _library(source: str, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    target = Path(_folder().name) / f"{source}_{abs(hash(macros))}.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", *(f"-D{name}={value}" for name, value in macros)]
    subprocess.run([str(COMPILER), *flags, "-o", str(target), str(_HERE / f"{source}.cpp")], check=True)
    return ctypes.CDLL(str(target))


def tiles(operands: ChainOperands) -> tuple[int, int]:
    """Programs along both axes of the grid."""
    rows, groups = operands.y_T.shape[-2], operands.first.shape[0] if operands.first.dim() == 3 else 1
    if operands.starts is not None:
        return min(rows, (rows + groups * (ROWS - 1)) // ROWS), 1
    return -(-rows // ROWS), groups


def macros_of(operands: ChainOperands) -> dict[str, int]:
    """Macros for the sizes and options of both passes."""
    context = operands.context
    return {
        "DDVI_PRECISION": PRECISIONS[operands.precision],
        "DDVI_D": operands.y_T.shape[-1],
        "DDVI_C": 0 if context is None else context.shape[-1],
        "DDVI_H": operands.first.shape[-2],
        "DDVI_NOISE": 1 if operands.noise is not None else 2 if operands.state is not None else 0,
        "DDVI_RESIDUAL": int(operands.residual),
        "DDVI_INDEXED": int(operands.starts is not None),
    }


def call(library: ctypes.CDLL, grid: tuple[int, int], seed: int, tensors: list[Tensor | None], numbers: list[int]) -> list[Tensor | None]:
    """Run a kernel whose parameters are pointers and then numbers of 64 bits; `seed` chooses the order of warps."""
    assert all(value is None or value.is_contiguous() for value in tensors)
    boxes = [ctypes.c_void_p(None if value is None else value.data_ptr()) for value in tensors] + [ctypes.c_int64(number) for number in numbers]
    library.emulate(*grid, seed, (ctypes.c_void_p * len(boxes))(*map(ctypes.addressof, boxes)))
    return tensors


def _launch(source: str, operands: ChainOperands, tensors: list[Tensor | None], seed: int, **more: int) -> None:
    groups = operands.first.shape[0] if operands.first.dim() == 3 else 1
    numbers = [operands.offset, groups, operands.y_T.shape[-2], max(1, operands.rows_per_sample), operands.coefficients.shape[0]]
    call(library(source, **macros_of(operands), **more), tiles(operands), seed, tensors, numbers)


def forward(operands: ChainOperands, seed: int = 0, keep: bool = True) -> dict[str, Tensor | None]:
    """Results of the forward kernel; elements that it does not write are NaN (signs: -1). `seed` chooses the order of warps."""
    y_T, hidden, steps = operands.y_T, operands.first.shape[-2], operands.coefficients.shape[0]
    noisy = operands.noise is not None or operands.state is not None
    results = {
        "z": _fresh(*y_T.shape),
        "path": _fresh(*y_T.shape[:-1]) if noisy else None,
        "trajectory": _fresh(steps + 1, *y_T.shape) if keep else None,
        "signs": torch.full((steps, *y_T.shape[:-1], 4, hidden // 32), -1, dtype=torch.int32) if keep else None,
        "outputs": _fresh(steps, *y_T.shape) if keep else None,
    }
    inputs = [getattr(operands, name) for name in (*ChainOperands._fields[:11], "drawn_from")]
    _launch("chain_forward", operands, [*inputs, *results.values()], seed, DDVI_KEEP=int(keep))
    return results


def backward(
    operands: ChainOperands, results: dict[str, Tensor | None], d_z: Tensor | None, d_path: Tensor | None, d_trajectory: Tensor | None, seed: int = 0
) -> dict[str, Tensor | None]:
    """Gradients of the backward kernel, from results of `forward`; elements that it does not write are NaN."""
    y_T, context, noise, steps, (x, y) = operands.y_T, operands.context, operands.noise, operands.coefficients.shape[0], tiles(operands)
    gradients = {
        "y_T": _fresh(*y_T.shape),
        "context": None if context is None else _fresh(*context.shape),
        "noise": None if noise is None else _fresh(*noise.shape),
        "output": _fresh(steps, *y_T.shape),
        "coefficient_sums": _fresh(steps, x * y, 5),
    }
    names = ("first", "hidden", "last", "coefficients", "noise", "order", "starts", "drawn_from")
    inputs = [*(getattr(operands, name) for name in names), results["trajectory"], results["signs"], results["outputs"], d_z, d_path, d_trajectory]
    _launch(
        "chain_backward", operands, [*inputs, *gradients.values()], seed,
        DDVI_PATH_GRADIENT=int(d_path is not None), DDVI_TRAJECTORY_GRADIENT=int(d_trajectory is not None),
        DDVI_NOISE_GRADIENT=int(noise is not None), DDVI_COEFFICIENT_GRADIENT=1,
    )  # fmt: skip
    return gradients


def _fresh(*shape: int) -> Tensor:
    return torch.full(shape, float("nan"))


def all_gradients(operands: ChainOperands, results: dict[str, Tensor], gradients: dict[str, Tensor]) -> Differentiable:
    """Every gradient; those of the weights are made in float64 from the signs, the trajectory and the gradients of the outputs alone."""
    of_states = {
        "active": signs.unpack(results["signs"]).double(),
        "y": results["trajectory"][:-1].double(),
        "d_output": gradients["output"].double(),
    }
    if operands.starts is None:
        weights = _weight_gradients(operands, **of_states)
    else:  # each group by itself
        parts = []
        for group, rows in enumerate(operands.order.split(operands.starts.diff().tolist())):
            own = {name: getattr(operands, name)[group] for name in ChainWeights._fields}
            context = None if operands.context is None else operands.context[rows]
            parts.append(_weight_gradients(operands._replace(context=context, **own), **{name: value[:, rows] for name, value in of_states.items()}))
        weights = tuple(torch.stack(part) for part in zip(*parts, strict=True))
    return Differentiable(gradients["y_T"], gradients["context"], *weights, gradients["coefficient_sums"].double().sum(1), gradients["noise"])


def _weight_gradients(operands: ChainOperands, active: Tensor, y: Tensor, d_output: Tensor) -> tuple[Tensor, ...]:
    """The sums over rows and steps that another kernel makes; all arguments but the operands have a first axis of steps."""
    first, hidden, last, _, table = (value.double() for value in operands.differentiable.weights)
    inputs = y if operands.context is None else torch.cat((y, operands.context.double().expand(*y.shape[:-1], -1)), -1)
    biases = table.movedim(-3, 0).flip(0).unsqueeze(-3)  # [T, .., 1, 4, H], in the order of the trajectory
    x1 = active[..., 0, :] * (inputs @ first.mT + biases[..., 0, :])
    x2 = active[..., 1, :] * (x1 @ hidden[..., 0, :, :].mT + biases[..., 1, :])
    x3 = active[..., 2, :] * (x2 @ hidden[..., 1, :, :].mT + biases[..., 2, :]) + (x1 if operands.residual else 0)
    x4 = active[..., 3, :] * (x3 @ hidden[..., 2, :, :].mT + biases[..., 3, :])
    d4 = active[..., 3, :] * (d_output @ last)
    d_x3 = d4 @ hidden[..., 2, :, :]
    d3 = active[..., 2, :] * d_x3
    d2 = active[..., 1, :] * (d3 @ hidden[..., 1, :, :])
    d1 = active[..., 0, :] * (d2 @ hidden[..., 0, :, :] + (d_x3 if operands.residual else 0))
    d_hidden = torch.stack([(d.mT @ x).sum(0) for d, x in ((d2, x1), (d3, x2), (d4, x3))], -3)
    d_table = torch.stack([d.sum(-2) for d in (d1, d2, d3, d4)], -2).flip(0).movedim(0, -3)
    return (d1.mT @ inputs).sum(0), d_hidden, (d_output.mT @ x4).sum(0), d_output.sum((0, -2)), d_table
