"""Device operations of a training step, counted without a device, and their time on an H200.

`python -m bench.device.step` counts the operations of the benchmark's training step (the released code's recipe for MNIST) and of the default
recipe, and writes `bench/results/training_step.json` with the predicted time of the former. `--count` only counts.

The step runs on tensors without memory. A launch of our kernels is one operation, and so is every operator of torch that is not a view. Our kernels
have the times of the static model; operators of torch have the times of `OTHERS`, which are assumed, not modelled.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import records
from bench.baselines.training import Sizes
from bench.device import predictions
from bench.training import PROGRESS, build_objective
from ddvi_fast import _backend, _markdown, _operator, dense
from ddvi_fast.cuda import chain as cuda_chain
from ddvi_fast.engine.cuda_graph import DeviceProgress
from ddvi_fast.engine.engine import Engine
from ddvi_fast.objectives import Objective
from ddvi_fast.precision import NARROW
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import DeviceDraws, Draws

DEVICE = torch.device("meta")
RESULTS = records.RESULTS / "training_step.json"
ROWS = 128
PRECISIONS = ("float32", "bf16")

# Operators that launch nothing: views, memory without content, and marks of the profiler.
_NOTHING = frozenset((
    "_record_function_enter_new", "_record_function_exit", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "flatten", "is_same_size", "lift_fresh", "new_empty", "new_empty_strided", "permute", "reshape",
    "resize_", "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsafe_split",
    "unsqueeze", "view",
))  # fmt: skip
PRODUCTS = ("addmm", "mm", "bmm", "baddbmm")

# Microseconds of an operator of torch: of a small elementwise operation or sum, and of Adam's.
OTHERS = {"_fused_adam_": 12.0, "_foreach_add_": 2.5, "_foreach_sub_": 2.5}
ELEMENTWISE = 2.5
# A product of torch takes the larger of this, and of its operations at a third of the peak rate, because few programs have 128 rows.
PRODUCT, RATES = 5.0, {"float32": 51e12 / 3, "bf16": 781e12 / 3}
UNPREDICTED = 10.0  # of a launch of ours that the model cannot walk
BETWEEN = 1.0  # microseconds between the end of an operation and the start of the next one in a graph


@dataclass
class Step:
    """What a step asks of the device."""

    launches: list[Any] = field(default_factory=list)  # `kernels.common.Launch`
    in_cuda: list[Any] = field(default_factory=list)  # `ddvi_fast.cuda.chain.Compilation`
    operators: list[tuple[str, float]] = field(default_factory=list)  # of torch: name and floating-point operations of a product

    @property
    def count(self) -> int:
        return len(self.launches) + len(self.in_cuda) + len(self.operators)

    def names(self) -> collections.Counter[str]:
        """How often each operation stands in the step."""
        ours = [each.compilation.kernel.__name__ for each in self.launches] + [each.variant.kernel.name for each in self.in_cuda]
        return collections.Counter(ours + [name for name, _ in self.operators])


class _Operators(TorchDispatchMode):
    """Notes the operators of torch. Adam has no version for tensors without memory, and returns nothing."""

    def __init__(self, found: list[tuple[str, float]]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = operator._schema.name.removeprefix("aten::").removeprefix("profiler::")
        result = None if name == "_fused_adam_" else operator(*args, **(kwargs or {}))
        if name not in _NOTHING:
            self.found.append((name, 2.0 * result.numel() * args[-2].shape[-1] if name in PRODUCTS else 0.0))
        return result


def recorded_step(objective: Objective, optimisation: Optimisation, x: Tensor, precision: str = "float32", steps: int = 1000) -> Step:
    """The operations of one step of training as it is captured on a GPU.

    Args:
        objective: Objective to train; it is moved to tensors without memory.
        optimisation: Its optimisation.
        x: Batch, on the device without memory.
        precision: Precision of matrix products, ``float32`` or ``bf16`` (default float32).
        steps: Length of the phase (int, default 1000).
    """
    engine, found = Engine(objective.train(), optimisation, DEVICE), Step()
    draws, progress = DeviceDraws(Draws(0).state(DEVICE)), DeviceProgress(steps, 1, DEVICE)
    with _as_on_a_gpu(found, precision), _Operators(found.operators):
        for _ in range(2):  # the first one makes what is kept
            for kept in (found.launches, found.in_cuda, found.operators):
                kept.clear()
            progress.move_to(PROGRESS)
            found.operators.clear()  # the step's position is set outside of the recording
            engine._run(x, progress, draws)
    return found


def _as_on_a_gpu(found: Step, precision: str) -> ExitStack:
    """A context in which tensors without memory take the ways of a GPU."""
    from torch.nn.utils import clip_grad

    from ddvi_fast.kernels import common

    def launch(variant: Any, device: torch.device, grid: tuple[int, int], shared: int, **arguments: Any) -> None:
        steps = arguments["steps"]
        found.in_cuda.append(cuda_chain.Compilation(f"{variant.kernel.name} {precision}", variant, grid, steps, (predictions.ARCHITECTURE,)))

    stack = ExitStack()
    narrow = NARROW.get(precision)
    for owner, name, value in (
        (_backend, "_chosen", "cuda"),
        (_backend, "fused", lambda device: "triton"),
        (_operator, "needs_dispatch", lambda *inputs: False),
        (cuda_chain, "launch", launch),
        (sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter, **options: None),
        (clip_grad, "_has_foreach_support", lambda tensors, device: True),
        (dense, "narrow_type", lambda device: narrow),
        *((sys.modules[f"ddvi_fast.ops.{name}"], "hidden_precision", lambda asked, device: precision) for name in ("chain", "sleep")),
    ):
        stack.enter_context(mock.patch.object(owner, name, value))
    found.launches = stack.enter_context(common.recording(predictions.ARCHITECTURE))
    return stack


def benchmark_step(precision: str = "float32") -> Step:
    """The step of the benchmark: one wake and three sleep updates of the released recipe, 128 rows of 784 pixels, T = 40."""
    sizes = Sizes()
    return recorded_step(
        build_objective(sizes), Optimisation(1e-4, "constant", max_norm=None), torch.empty(ROWS, sizes.pixels, device=DEVICE), precision
    )


def default_step(*settings: str) -> Step:
    """The step of the default recipe with other settings (``NAME=VALUE``); its count does not depend on the data."""
    from ddvi_fast.config.compose import compose
    from ddvi_fast.recipes.build import build
    from ddvi_fast.training.run import load_dataset

    config = compose(["dataset=digits", "limit=100", *settings])
    dataset = load_dataset(config)
    phase = build(config, dataset).phases[-1]
    return recorded_step(phase.objective, phase.optimisation, torch.empty(ROWS, *dataset.input_shape, device=DEVICE))


def rows_of(step: Step, precision: str) -> Iterator[tuple[str, int, float, str]]:
    """Operations of a step: name, number, microseconds of all of them, and where the time is from."""
    for each in predictions.predicted_launches(step.launches):
        known = each.microseconds is not None
        yield each.kernel, each.launches, each.microseconds if known else UNPREDICTED * each.launches, "model" if known else "assumed"
    for each in step.in_cuda:
        yield each.name, 1, predictions.in_cuda_microseconds(each), "model"
    grouped: dict[str, list[float]] = {}
    for name, flops in step.operators:
        grouped.setdefault("products" if name in PRODUCTS else name if name in OTHERS else "elementwise and sums", []).append(flops)
    for name, each in grouped.items():
        if name == "products":
            yield name, len(each), sum(max(PRODUCT, 1e6 * flops / RATES[precision]) for flops in each), "assumed"
        else:
            yield name, len(each), OTHERS.get(name, ELEMENTWISE) * len(each), "assumed"


def record_of(precision: str) -> dict[str, Any]:
    """Counts and predicted times of the benchmark's step."""
    step = benchmark_step(precision)
    rows = [list(row) for row in rows_of(step, precision)]
    rows.append(["between operations", step.count, BETWEEN * step.count, "assumed"])
    total = round(sum(row[2] for row in rows), 1)
    return {"count": step.count, "names": dict(sorted(step.names().items())), "rows": rows, "microseconds": total}


def markdown(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        "# Predicted time of a training step on an H200", "",
        f"Written by `python -m bench.device.step`, Triton {record['triton']}. The step is that of the benchmark (`training N=128 T=40`), one",
        "captured graph. Nothing here was measured. `model`: the static model of each kernel's machine code. `assumed`: "
        f"{ELEMENTWISE:g} us for an elementwise operation or a sum,",
        f"{OTHERS['_fused_adam_']:g} us for Adam, for a matrix product the larger of {PRODUCT:g} us and its operations at a third of the peak rate, "
        f"{UNPREDICTED:g} us for a launch that the model cannot walk, and {BETWEEN:g} us between two operations.", "",
    ]  # fmt: skip
    for precision, found in record["steps"].items():
        rows = [[name, str(number), f"{micro:.1f}", source] for name, number, micro, source in found["rows"]]
        rows.append(["all", str(found["count"]), f"{found['microseconds']:.0f}", ""])
        lines += [f"## {precision}", "", _markdown.table(("operation", "number", "us", "from"), rows), ""]
    lines += [f"The default recipe's step (digits, `method=ddvi`) has {record['default_recipe']} operations.", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", action="store_true", help="count only, and write nothing")
    options = parser.parse_args(arguments)
    if options.count:
        for name, step in (*((f"benchmark, {precision}", benchmark_step(precision)) for precision in PRECISIONS), ("default recipe", default_step())):
            print(f"{name}: {step.count} device operations")
            print("  " + ", ".join(f"{kind} {number}" for kind, number in step.names().most_common()))
        return 0
    import triton

    steps = {precision: record_of(precision) for precision in PRECISIONS}
    record = {"kind": "bench.device.step", "triton": triton.__version__, "steps": steps, "default_recipe": default_step().count}
    print(records.write(RESULTS, record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
