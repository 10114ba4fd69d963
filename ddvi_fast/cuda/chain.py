"""The denoising chain of few rows in CUDA C++: eight rows a program, all steps in one launch, and a backward pass from the signs of ReLUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.cuda import selection
from ddvi_fast.cuda.launch import launch
from ddvi_fast.cuda.module import Kernel, Variant, architecture, trouble
from ddvi_fast.cuda.selection import ROWS

__all__ = ["backward", "broken", "compilations", "forward", "slower", "unsupported", "why_not"]

_SIZES = tuple((name, "int64") for name in ("offset", "groups", "rows", "rows_per_sample", "steps"))
_INDEX = (("order", "int64 *"), ("starts", "int64 *"), ("state", "int64 *"))


def _floats(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "float *") for name in names.split())


FORWARD = Kernel(
    "chain_forward.cu",
    "chain_forward",
    (
        *_floats("y_T context first hidden last last_bias time_table coefficients noise"),
        *_INDEX,
        *_floats("z path trajectory"),
        ("signs", "int *"),
        *_floats("outputs"),
        *_SIZES,
    ),
)
BACKWARD = Kernel(
    "chain_backward.cu",
    "chain_backward",
    (
        *_floats("first hidden last coefficients noise"),
        *_INDEX,
        *_floats("trajectory"),
        ("signs", "int *"),
        *_floats("outputs d_z d_path d_trajectory d_y_T d_context d_noise d_output coefficient_sums"),
        *_SIZES,
    ),
)
_PRECISIONS = {"bf16": 0, "fp16": 1, "float32": 2, "tf32": 2}
_DETERMINISTIC, _GIVEN, _DRAWN = range(3)  # sources of noise


class _Call(NamedTuple):
    """Sizes and options of one call."""

    groups: int  # 1 without a group axis
    rows: int  # of each group, or of all with an index
    latent: int
    context: int
    hidden: int
    steps: int
    indexed: bool
    source: int  # of the noise
    residual: bool
    precision: str

    @classmethod
    def of(cls, operands: ChainOperands) -> _Call:
        y_T, context, first, noise = operands.y_T, operands.context, operands.first, operands.noise
        groups, width = first.shape[0] if first.dim() == 3 else 1, 0 if context is None else context.shape[-1]
        source = _GIVEN if noise is not None else _DETERMINISTIC if operands.state is None else _DRAWN
        steps, indexed = operands.coefficients.shape[0], operands.starts is not None
        sizes = (groups, y_T.shape[-2], y_T.shape[-1], width, first.shape[-2], steps)
        return cls(*sizes, indexed, source, operands.residual, operands.precision)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles of eight rows, and of groups that have rows of their own."""
        if self.indexed:  # no tile has rows of two groups
            return min(self.rows, (self.rows + self.groups * (ROWS - 1)) // ROWS), 1
        return -(-self.rows // ROWS), self.groups

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory: what is left of the hidden matrices after their halves in registers."""
        return 3 * 2 * self.hidden**2 if _PRECISIONS[self.precision] == _PRECISIONS["float32"] else 0

    def variant(self, kernel: Kernel, **switches: bool) -> Variant:
        """The variant of a kernel for this call; `switches` are macros by name, in small letters."""
        macros = {
            "PRECISION": _PRECISIONS[self.precision], "D": self.latent, "C": self.context, "H": self.hidden,
            "NOISE": self.source, "RESIDUAL": self.residual, "INDEXED": self.indexed,
            **{name.upper(): on for name, on in switches.items()},
        }  # fmt: skip
        return Variant(kernel, tuple((f"DDVI_{name}", int(value)) for name, value in macros.items()), 2 * self.hidden, self.shared)

    def result(self, like: Tensor, *shape: int) -> Tensor:
        """Memory for results of rows: NaN for rows with an index, because a row whose group does not exist is never computed."""
        return like.new_full(shape, float("nan")) if self.indexed else like.new_empty(shape)


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot run this chain, or None if they can; `tensors` are its float32 operands by name."""
    reason = _elsewhere(tensors)
    if reason:
        return reason
    sizes = _sizes(precision, tensors)
    reason = selection.row_of("cuda").refusal(sizes)
    if reason:
        return f"{reason} (in a chain in CUDA C++)"
    return broken(sizes.latent, sizes.context, sizes.hidden, precision, tensors["y_T"].device.index) or None


def slower(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why Triton's kernels are faster for this chain, or None if they are not."""
    return selection.row_of("cuda").slower(_sizes(precision, tensors)) or None


def broken(latent: int, context: int, hidden: int, precision: str, device: int | None) -> str:
    """The reason why chains of these sizes cannot be compiled or loaded on a device, or the empty string once a typical one is loaded.

    That is a chain with drawn noise: what compiles it compiles the others.
    """
    key = latent, context, hidden, precision, device
    if key in _sound:
        return ""
    call = _Call(1, 1, latent, context, hidden, 1, False, _DRAWN, True, precision)
    reason = trouble((call.variant(FORWARD, keep=True), call.variant(BACKWARD, path_gradient=True)), device or 0)
    if not reason:
        _sound.add(key)
    return reason


_sound: set[tuple] = set()  # arguments for which `broken` found nothing
broken._dynamo_marked_constant = True


def why_not(device: int) -> str:
    """The reason why no chain can run on a CUDA device, or the empty string: its architecture, NVRTC, or the driver."""
    return selection.row_of("cuda").refusal(selection.Sizes(2, 2, 64, 1, 1, "bf16", architecture(device))) or broken(2, 2, 64, "bf16", device)


def forward(
    operands: ChainOperands, keep_trajectory: bool, keep_signs: bool = False, keep_outputs: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Run the chain from `y_T` down to `z`.

    Returns:
        `z` [.., R, D]; the path log-ratio [.., R] in nats, None for a deterministic chain; and, where they are kept, the trajectory
        [T + 1, .., R, D], start first, the signs of the ReLUs, int32 [T, .., R, 4, H / 32], and the network's outputs [T, .., R, D], both in
        the order of the trajectory.
    """
    operands = _aligned(operands)
    call, y_T = _Call.of(operands), operands.y_T
    z = call.result(y_T, *y_T.shape)
    path = None if call.source == _DETERMINISTIC else call.result(y_T, *y_T.shape[:-1])
    keep = keep_trajectory or keep_signs or keep_outputs  # the kernel writes states and signs together
    trajectory = call.result(y_T, call.steps + 1, *y_T.shape) if keep else None
    signs = y_T.new_empty((call.steps, *y_T.shape[:-1], 4, call.hidden // 32), dtype=torch.int32) if keep else None
    outputs = y_T.new_empty((call.steps, *y_T.shape)) if keep_outputs else None
    launch(
        call.variant(FORWARD, keep=keep), y_T.device, call.grid, call.shared,
        **_common(operands, call), y_T=y_T, context=operands.context, last_bias=operands.last_bias, time_table=operands.time_table,
        z=z, path=path, trajectory=trajectory, signs=signs, outputs=outputs,
    )  # fmt: skip
    return z, path, trajectory if keep_trajectory else None, signs if keep_signs else None, outputs


def backward(
    operands: ChainOperands,
    trajectory: Tensor,
    signs: Tensor | None,
    outputs: Tensor | None,
    d_z: Tensor | None,
    d_path: Tensor | None,
    d_trajectory: Tensor | None,
    needed: Differentiable,
) -> Differentiable:
    """The gradients that are `needed`, from those of the first three results of `forward`.

    One launch carries the gradient down the steps. That of the weights follows from the states, the signs and the gradients of the network's
    outputs.
    Without the signs, or the outputs for the gradient of the coefficients, the chain is run again.
    """
    if signs is None or (needed.table and outputs is None):
        *_, signs, outputs = forward(operands, False, True, needed.table)
    operands = _aligned(operands)
    trajectory, signs, outputs, d_z, d_path, d_trajectory = map(_at_16_bytes, (trajectory, signs, outputs, d_z, d_path, d_trajectory))
    call, y_T, context, noise = _Call.of(operands), operands.y_T, operands.context, operands.noise
    d_y_T, d_output = call.result(y_T, *y_T.shape), y_T.new_empty((call.steps, *y_T.shape))
    d_context = call.result(y_T, *context.shape) if needed.context and context is not None else None
    d_noise = call.result(y_T, *noise.shape) if needed.noise and noise is not None else None
    tiles = call.grid[0] * call.grid[1]
    sums = y_T.new_empty((call.steps, tiles, 5)) if needed.table else None
    switches = {"path": d_path, "trajectory": d_trajectory, "noise": d_noise, "coefficient": sums}
    launch(
        call.variant(BACKWARD, **{f"{name}_gradient": value is not None for name, value in switches.items()}),
        y_T.device, call.grid, call.shared, **_common(operands, call), trajectory=trajectory, signs=signs, outputs=outputs,
        d_z=d_z, d_path=d_path, d_trajectory=d_trajectory, d_y_T=d_y_T, d_context=d_context, d_noise=d_noise, d_output=d_output,
        coefficient_sums=sums,
    )  # fmt: skip
    weights = _weight_gradients(operands, trajectory, signs, d_output) if any(needed.weights) else (None,) * 5
    return Differentiable(d_y_T, d_context, *weights, None if sums is None else sums.sum(1), d_noise).only(needed)


def _weight_gradients(operands: ChainOperands, trajectory: Tensor, signs: Tensor, d_output: Tensor) -> tuple[Tensor, ...]:
    """Triton's kernel, which takes each step of each row by itself."""
    from ddvi_fast.kernels.weight_gradient import weight_gradients

    return weight_gradients(operands, trajectory, signs, d_output)


def compilations() -> Iterator[Compilation]:
    """Variants for compilation ahead of time: the benchmark's, and those of a chain with a learned table and an index of rows.

    Those of wide latents and of a narrow network are for one architecture.
    """
    for precision in ("bf16", "float32"):
        for latent, hidden, architectures in ((2, 128, (80, 90, 100)), (16, 128, (90,)), (2, 64, (90,))):
            call = _Call(1, 128, latent, 2, hidden, 40, False, _DRAWN, True, precision)
            yield from _both(f"D={latent} H={hidden} {precision}", call, architectures)
        yield from _both(f"D=3 H=128 {precision} learned table indexed", _Call(10, 128, 3, 8, 128, 8, True, _DRAWN, True, precision), (80, 90, 100))


def _both(name: str, call: _Call, architectures: tuple[int, ...]) -> Iterator[Compilation]:
    """The forward and the backward kernel of a call; that with an index has the gradient of the table."""
    for kernel, switches in ((FORWARD, {"keep": True}), (BACKWARD, {"path_gradient": True, "coefficient_gradient": call.indexed})):
        yield Compilation(f"{kernel.name} {name}", call.variant(kernel, **switches), call.grid, call.steps, architectures)


class Compilation(NamedTuple):
    """One variant at one size."""

    name: str
    variant: Variant
    grid: tuple[int, int]  # of a launch with 128 rows
    steps: int  # that it runs
    architectures: tuple[int, ...]  # compute capabilities times ten


def _aligned(operands: ChainOperands) -> ChainOperands:
    """The operands with tensors that the kernels can read 16 bytes at a time, unlike some views of flat buffers."""
    return ChainOperands._make(map(_at_16_bytes, operands))


def _at_16_bytes(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.data_ptr() % 16 else value


def _common(operands: ChainOperands, call: _Call) -> dict[str, Any]:
    """The arguments that both kernels have."""
    names = ("first", "hidden", "last", "coefficients", "noise", "order", "starts", "offset")
    sizes = {"groups": call.groups, "rows": call.rows, "rows_per_sample": max(1, operands.rows_per_sample), "steps": call.steps}
    return {name: getattr(operands, name) for name in names} | sizes | {"state": operands.drawn_from}


def _elsewhere(tensors: dict[str, Tensor | None]) -> str:
    """The reason why these tensors cannot be read by one launch, or the empty string."""
    device = tensors["y_T"].device
    for name, value in tensors.items():
        if value is not None and (value.device.type != "cuda" or value.device != device):
            return f"{name}: CUDA C++ takes tensors of one cuda device, got one on {value.device}"
        if value is not None and value.dtype != torch.float32:
            return f"{name}: the CUDA C++ kernels are float32, got {str(value.dtype).removeprefix('torch.')}"
    return ""


def _sizes(precision: str, tensors: dict[str, Tensor | None]) -> selection.Sizes:
    """Sizes of a chain; those of its network come from the weights, whose shapes torch.compile takes as constants."""
    latent, hidden = tensors["last"].shape[-2:]
    context, steps = tensors["first"].shape[-1] - latent, tensors["time_table"].shape[-3]
    y_T = tensors["y_T"]
    return selection.Sizes(latent, context, hidden, steps, y_T.shape[:-1].numel(), precision, architecture(y_T.device.index or 0))
