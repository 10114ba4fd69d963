"""Kernels that the benchmark's cases launch, recorded without a GPU, and their times on an H200 by the static model.

`ahead_of_time` writes the table, `tune` ranks launch options by it, and the device check compares it with measured times.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench import cases
from bench.device import sass
from bench.device.static_model import Kernel, Prediction, predict
from ddvi_fast._operands import kernel_powers
from ddvi_fast.cuda import chain as cuda_chain
from ddvi_fast.cuda import compiler, nvrtc

ARCHITECTURE = 90
PRECISIONS = {"ours": "float32", "ours_bf16": "bf16"}
_WIDTHS, _HIDDEN = 6, 128  # of the benchmark's discrepancies and denoisers

Call = tuple[Callable[..., object], tuple[Any, ...]]  # a function that launches kernels, and its arguments
Values = Mapping[str, Any]  # numeric arguments and constants of a launch

# Turns of the main loop of a kernel, from the numbers that it is launched with. A kernel without a loop needs none.
TURNS: dict[str, Callable[[Values], float]] = {
    "chain_fwd_kernel": lambda v: v["steps_here"],
    "chain_bwd_kernel": lambda v: v["steps_here"],
    "denoiser_bwd_kernel_weights": lambda v: max(_weight_turns(parts, v) for parts in _parts(v)),
    "sleep_fwd_kernel": lambda v: _sorted_turns(v),
    "sleep_bwd_kernel": lambda v: math.ceil(v["order"][0] / v["grid"] / v["BN"]),
    "mmd_fwd_kernel_split": lambda v: math.ceil(v["stride"] / v["BLOCK"]),
    "mmd_fwd_kernel_norms": lambda v: math.ceil(v["depth"] / v["DEPTH"]),
    "mmd_fwd_kernel": lambda v: math.ceil(v["depth"] / v["DEPTH"]),
    "mmd_bwd_kernel_coefficients": lambda v: math.ceil(v["depth"] / v["DEPTH"]),
    "mmd_bwd_kernel": lambda v: math.ceil(v["count"] * v["TILE"] / v["DEPTH"]),
    "kde_fwd_kernel": lambda v: min(v["share"], v["tiles"]),
    "kde_bwd_kernel": lambda v: min(v["share"], v["tiles"]),
    "kde_bwd_kernel_gather": lambda v: v["WIDTH"],
    "elbo_fwd_kernel": lambda v: math.ceil(v["width"] / v["WIDTH"]),
    "elbo_fwd_kernel_log_mean_exp": lambda v: math.ceil(v["width"] / v["WIDTH"]),
    "elbo_bwd_kernel_log_mean_exp": lambda v: math.ceil(v["width"] / v["WIDTH"]),
    "terms_fwd_kernel": lambda v: v["count"],
    "dense_bwd_kernel": lambda v: math.ceil(min(v["rows"], v["PART"]) / v["ROWS"]),
    "start_bwd_kernel": lambda v: v["samples"],
    "frame_bwd_kernel": lambda v: v["samples"],
    "classes_bwd_kernel": lambda v: v["samples"],
    "bound_fwd_kernel": lambda v: v["samples"],
    "bound_bwd_kernel": lambda v: v["samples"],
}


# Kernels whose inner loops have one turn: they search for the segment of a tile, or count a few rows.
SEARCHING = ("denoiser_bwd_kernel_weights", "sleep_fwd_kernel", "terms_fwd_kernel")


def _sorted_turns(v: Values) -> int:
    """Tiles of one step in a program, of rows that are spread evenly over the steps of one group."""
    tiles = v["steps"] * math.ceil(v["order"][0] / v["steps"] / v["BN"])
    return math.ceil(tiles / v["grid"])


def _parts(v: Values) -> list[int]:
    """Parts of the tiles that the programs of each layer take, of those in the launch."""
    layers = range(3) if v["LAYER"] == _kernels("weight_gradient").ALL else [v["LAYER"]]
    return [v[f"parts_{layer}"] for layer in layers]


def _weight_turns(parts: int, v: Values) -> int:
    """Tiles of a group, at all steps, in one of its `parts`; without an index of groups."""
    return _sorted_turns({**v, "grid": parts}) if v["BY_STEP"] else math.ceil(v["steps_here"] * math.ceil(v["rows"] / v["BN"]) / parts)


# Kernels whose programs go different ways at the same time: the constants with which each way is compiled alone, and its turns.
WAYS: dict[str, Callable[[Values], list[tuple[dict[str, Any], int]]]] = {
    "denoiser_bwd_kernel_weights": lambda v: [
        ({"LAYER": layer}, _weight_turns(parts, v)) for layer, parts in (enumerate(_parts(v)) if len(_parts(v)) > 1 else [(v["LAYER"], *_parts(v))])
    ],
    "sleep_fwd_kernel_prepare": lambda v: [({"programs": 0}, 1)],  # the programs that prepare operands have less to do
}
# Turns of every loop in the order of their ends, of kernels with several: they sum slices or tiles, or count rows for each block of segments.
LOOPS: dict[str, Callable[[Values], list[int]]] = {
    "denoiser_bwd_kernel_finish": lambda v: _loops_of_finish(v),
    "sleep_fwd_kernel_prepare": lambda v: [v["share"], _blocks_of_segments(v)] + (_loops_of_sort(v) if v["sorted_rows"] is not None else []),
    "sleep_fwd_kernel_sort": lambda v: _loops_of_sort(v),
}


def _loops_of_finish(v: Values) -> list[int]:
    slices = math.ceil(max(v[f"slices_{layer}"] for layer in range(3)) / v["SLICES"])
    lines = v["groups"] * v["steps"] if v["BY_STEP"] else v["groups"]
    of_starts = [math.ceil(lines / 256)] if v["starts"] is not None else []  # searched in blocks of 256 segments
    return [slices] * 4 + of_starts + [math.ceil(v["tiles"] / lines / v["SLICES"])]


def _loops_of_sort(v: Values) -> list[int]:
    return [math.ceil(v["counts"][0] / v["PARTS"]), v["share"], _blocks_of_segments(v)]


def _blocks_of_segments(v: Values) -> int:
    return math.ceil(v["groups"] * v["steps"] / v["KEYS"])


# Kernels whose operands come from memory, not from the L2 cache: one pass over much more than it holds.
STREAMING = ("noise_", "elbo_")


@dataclass(frozen=True)
class Predicted:
    """All launches of one variant in a call with the same grid.

    Args:
        kernel: Name of the variant.
        grid: Programs of a launch.
        launches: Number of launches.
        turns: Turns of the main loop, 0 without a loop.
        microseconds: Time of all of them together; None if the kernel has inner loops, or a loop that is not in `TURNS`.
    """

    kernel: str
    grid: int
    launches: int
    turns: int
    microseconds: float | None


def precisions(case: cases.Case) -> list[str]:
    """Precisions in which a case is timed."""
    return [precision for provider, precision in PRECISIONS.items() if provider in case.providers]


def predicted(calls: Iterable[Call], variant: str = "") -> list[Predicted]:
    """The launches of some calls on an H200, each with its time."""
    common = _kernels("common")
    return predicted_launches(each for call, arguments in calls for each in common.launches(variant, ARCHITECTURE, call, *arguments))


def predicted_launches(launches: Iterable[Any]) -> list[Predicted]:
    """Some launches (`kernels.common.Launch`) on an H200, those of one variant with the same grid together, each with its time."""
    found: dict[tuple[str, int, int], list[Any]] = {}
    for launched in launches:
        values = _values(launched)
        key = (str(vars(launched.compilation)), math.prod(launched.grid), _turns(launched.compilation.kernel.__name__, values))
        found.setdefault(key, []).append(launched)
    return [_predicted(launches, grid, turns) for (_, grid, turns), launches in found.items()]


def _values(launched: Any) -> Values:
    """Shapes, constants and numbers of a launch by the names of the kernel's arguments."""
    return {**launched.shapes, **launched.compilation.constexprs, **launched.values, "grid": math.prod(launched.grid)}


def predicted_in_cuda(case: cases.Case, precision: str) -> list[Predicted]:
    """The launches of the CUDA C++ kernels that take a chain of few rows, but for its weight gradients; none without NVRTC."""
    shape = dict(case.shape)
    if case.operation != "chain" or shape["N"] != 128 or not nvrtc.available()[0]:
        return []
    named = {each.name: each for each in cuda_chain.compilations()}
    found = []
    for kernel in ("chain_forward", *(["chain_backward"] if case.backward else [])):
        each = named[f"{kernel} D={shape['D']} H={shape['H']} {precision}"]
        found.append(Predicted(each.name, math.prod(each.grid), 1, each.steps, in_cuda_microseconds(each)))
    return found


def in_cuda_microseconds(wanted: cuda_chain.Compilation) -> float:
    """Time of a launch of a kernel in CUDA C++."""
    kernel = compiled(wanted)
    return round(1e6 * predict(kernel, math.prod(wanted.grid), _cuda_turns(kernel.program, wanted.steps)).seconds, 2)


def _cuda_turns(program: sass.Program, steps: int) -> list[int]:
    """The main loop is that over steps."""
    return [steps if loop == program.main_loop else 1 for loop in program.loops]


def _turns(name: str, values: Values) -> int:
    return int(TURNS[name](values)) if name in TURNS else 0


def _predicted(launches: list[Any], grid: int, turns: int) -> Predicted:
    compilation, values = launches[0].compilation, _values(launches[0])
    name = compilation.kernel.__name__
    times = []
    for constants, count in WAYS.get(name, lambda v: [({}, turns)])(values):
        kernel = compiled(_with_constants(compilation, constants))
        found = prediction(kernel, name, grid, count) if name not in LOOPS else _with_loops(kernel, grid, LOOPS[name](values))
        times.append(None if found is None else found.seconds)
    micro = None if None in times else round(1e6 * max(times) * len(launches), 2)  # type: ignore[type-var]
    return Predicted(compilation.name.strip(), grid, len(launches), turns, micro)


def _with_constants(compilation: Any, constants: Mapping[str, Any]) -> Any:
    """A variant some of whose arguments are constants."""
    signature = {**compilation.signature, **dict.fromkeys(constants, "constexpr")}
    return replace(compilation, signature=signature, constexprs={**compilation.constexprs, **constants}) if constants else compilation


def _with_loops(kernel: Kernel, grid: int, turns: list[int]) -> Prediction | None:
    """The prediction from the turns of every loop, or None if the compiler made other loops."""
    made = len(kernel.program.loops)
    return predict(kernel, grid, turns) if made == len(turns) else None


def prediction(kernel: Kernel, name: str, grid: int, turns: int) -> Prediction | None:
    """The model's prediction, or None if the turns of the kernel's loops are not known, or its main loop is not on the path that the model walks."""
    program = kernel.program
    big = program.main_loop
    inner = [loop for loop in program.loops if big and loop != big and big.first <= loop.first and loop.last <= big.last]
    if (inner and name not in SEARCHING) or (big and not turns):
        return None
    once, twice = ([count if loop == big else 1 for loop in program.loops] for count in (1, 2))
    if big and predict(kernel, 1, once).cycles >= predict(kernel, 1, twice).cycles:
        return None
    memory = "HBM" if name.startswith(STREAMING) else "L2"
    return predict(kernel, grid, [turns if loop == big else 1 for loop in program.loops], memory)


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: its binary, its warps, and the shared memory that its launch asks for; Triton's includes what the binary states.

    `tensor` is the number of columns of tensor memory.
    """

    cubin: bytes
    warps: int
    asked: int
    of_triton: bool
    tensor: int = 0

    def shared(self, stated: int) -> int:
        """Bytes of shared memory of a program, from those that the binary states."""
        return self.asked if self.of_triton else stated + self.asked


def binary(wanted: Any, architecture: int) -> Binary:
    """Compile a `Compilation` of kernels/ or of ddvi_fast/cuda/."""
    if hasattr(wanted, "variant"):
        variant = wanted.variant
        return Binary(compiler.binary(variant.kernel.source, architecture, **dict(variant.macros)), variant.threads // 32, variant.shared, False)
    import triton
    from triton.backends.compiler import GPUTarget

    result = triton.compile(wanted.source(), target=GPUTarget("cuda", architecture, 32), options=wanted.options)
    return Binary(result.asm["cubin"], wanted.options["num_warps"], result.metadata.shared, True, result.metadata.tmem_size or 0)


def compiled(wanted: Any) -> Kernel:
    """Compile a variant for the model's architecture and read its machine code."""
    key = str(vars(wanted)) if hasattr(wanted, "__dict__") else str(wanted)
    if key not in _compiled:
        made = binary(wanted, ARCHITECTURE)
        used = sass.resources(made.cubin)
        _compiled[key] = Kernel(sass.disassembled(made.cubin), made.warps, used["REG"], made.shared(used["SHARED"]))
    return _compiled[key]


_compiled: dict[str, Kernel] = {}


def calls(case: cases.Case, precision: str = "float32") -> list[Call]:
    """The kernels' entry points that a case calls, with arguments without memory; none for a case of several operations."""
    makers = {"chain": _chain, "sleep": _sleep, "noise": _noise, "mmd": _mmd, "kde": _kde, "elbo": _elbo}
    maker = makers.get(case.operation)
    return list(maker(precision, case.backward, **dict(case.shape))) if maker else []


def _kernels(module: str) -> Any:
    """A module of kernels/, imported late: the package does not need Triton."""
    return importlib.import_module(f"ddvi_fast.kernels.{module}")


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _needed(**names: bool) -> Any:
    from ddvi_fast._operands import Differentiable

    return Differentiable(**{name: names.get(name, True) for name in Differentiable._fields})


def _chain(
    precision: str, backward: bool, N: int, T: int, D: int, C: int = 2, H: int = 128, G: int = 1, kind: str = "", indexed: bool = False
) -> Iterator[Call]:
    from ddvi_fast._operands import ChainOperands

    chain, sizes = _kernels("chain"), _kernels("chain_options").Sizes(G, N, D, C, H, T, indexed)
    *tensors, state = sizes.meta_tensors()
    operands = ChainOperands(*tensors, None, *sizes.meta_index(), state, 0, N, True, precision)
    yield chain.forward, (operands, backward, backward)
    if backward:
        trajectory = operands.y_T.new_empty((T + 1, *operands.y_T.shape))
        signs = operands.y_T.new_empty((T, *operands.y_T.shape[:-1], 4, H // 32), dtype=torch.int32)
        yield (
            chain.backward,
            (
                operands,
                trajectory,
                signs,
                None,
                operands.y_T,
                operands.y_T.new_empty(operands.y_T.shape[:-1]),
                None,
                _needed(table=False, noise=False),
            ),
        )


def _sleep(precision: str, backward: bool, N: int, T: int, D: int, C: int = 2, H: int = _HIDDEN) -> Iterator[Call]:
    from ddvi_fast._operands import OF_CONTEXT, OF_WEIGHTS, SleepOperands, SleepResults

    sleep, sizes = _kernels("sleep"), _kernels("chain_options").Sizes(1, N, D, C, H, T)
    x0, *tensors, state = sizes.meta_tensors()
    operands = SleepOperands(x0, state.new_empty(N), *tensors, None, None, None, state, 0, N, "huber", True, precision)
    keep = OF_WEIGHTS | OF_CONTEXT if backward else 0
    yield sleep.forward, (operands, keep)
    if backward:
        loss = x0.new_empty(N)
        kept = SleepResults.empty(operands, loss, keep).with_weights(operands)
        yield sleep.backward, (operands, kept, loss, _needed(latents=False, table=False, noise=False))


def _noise(precision: str, backward: bool, N: int, D: int, T: int = 40) -> Iterator[Call]:
    noise = _kernels("noise")
    x0, t, table, state = _meta(N, D), _meta(N).long(), _meta(T), _meta(2).long()
    yield noise.add_noise, (x0, t, table, table, None, state, 0, N)
    if backward:
        yield noise.add_noise_backward, (x0, x0, t, table, table, x0, [True, False, False, False])


def _mmd(precision: str, backward: bool, N: int, M: int, P: int) -> Iterator[Call]:
    mmd = _kernels("mmd")
    x, y, sigmas, one = _meta(N, P), _meta(M, P), _meta(_WIDTHS), _meta()
    yield mmd.forward, (x, y, sigmas)
    if backward:
        yield mmd.backward, (x, y, sigmas, one, one, [True, True])


def _kde(precision: str, backward: bool, N: int, M: int, D: int) -> Iterator[Call]:
    kde = _kernels("kde")
    z, points, bandwidths, powers = _meta(N, D), _meta(M, D), _meta(len(kde.RELEASED)), kernel_powers(kde.RELEASED)
    yield kde.forward, (z, points, bandwidths, 1000.0, powers)
    if backward:
        yield kde.backward, (z, points, bandwidths, _meta(N, len(kde.RELEASED)), _meta(N), 1000.0, [True, False], powers)


def _elbo(precision: str, backward: bool, kind: str, N: int, P: int) -> Iterator[Call]:
    elbo = _kernels("elbo")
    full, rows = _meta(N, P), _meta(N)
    if kind == "log_mean_exp":
        yield elbo.log_mean_exp, (full,)
        if backward:
            yield elbo.log_mean_exp_backward, (full, rows, rows)
        return
    operands = [full, full, *([_meta(1)] if kind == "gaussian" else [])]
    call = (kind, operands, [N, P], 2.0)
    yield elbo.forward, call
    if backward:
        yield elbo.backward, (*call, rows, [True, kind == "gaussian_kl", *([False] if kind == "gaussian" else [])])
