"""Host time of an operator outside a graph beyond its launches, profiled on the CPU: `python -m bench.device.host`.

Kernels are not launched, values are not read back, as on a device, and what is left is the Python code of a call with its allocations. It writes
nothing, because the figures are those of the processor at hand.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

GOAL = 60.0  # microseconds


def operators(rows: int = 128) -> dict[str, Callable[[], Any]]:
    """A call of each operator on small operands."""
    import torch

    from ddvi_fast import denoisers, ops, rng, schedules
    from ddvi_fast.rng import Draws

    latents, context, x, points = (torch.zeros(rows, width) for width in (2, 2, 50, 2))
    t, draws, schedule = torch.zeros(rows, dtype=torch.int64), Draws(0), schedules.make("cosine", 8)
    denoiser, table = denoisers.ResidualMLP(2, 2, 8), schedule.coefficients("v")
    return {
        "gaussian_kl": lambda: ops.gaussian_kl(latents, latents),
        "bernoulli_log_likelihood": lambda: ops.bernoulli_log_likelihood(x, x),
        "log_mean_exp": lambda: ops.log_mean_exp(x, 1),
        "add_noise": lambda: ops.add_noise(latents, t, schedule, draws=draws),
        "kde_log_density": lambda: ops.kde_log_density(latents, points, (0.005, 0.008, 0.01, 0.03, 0.05), 1000.0),
        "mmd": lambda: ops.mmd(x, x, (1.0, 2.0)),
        "sample_chain": lambda: ops.sample_chain(latents, context, denoiser, table, draws=draws),
        "denoising_loss": lambda: ops.denoising_loss(latents, t, context, denoiser, schedule, draws=draws),
        "normal": lambda: rng.normal(draws, (rows, 2), rng.START),
    }


@contextmanager
def without_launches() -> Iterator[list[Any]]:
    """Context in which operators take the way of a device on tensors of the CPU, and launch nothing; yields the kernels that would be launched."""
    from ddvi_fast import _backend, _checks
    from ddvi_fast.kernels import common

    launched: list[Any] = []
    files = Path(common.__file__).parent.glob("*.py")
    modules = [importlib.import_module(f"ddvi_fast.kernels.{file.stem}") for file in files]  # all, before any is changed
    launching = [module for module in modules if getattr(module, "launch", None) is common.launch]

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        launched.append(kernel)

    with ExitStack() as stack:
        for module in launching:
            stack.enter_context(mock.patch.object(module, "launch", launch))
        stack.enter_context(mock.patch.object(_backend, "_chosen", "triton"))
        stack.enter_context(mock.patch.object(_backend, "fused", lambda device: "triton"))
        stack.enter_context(mock.patch.object(_checks, "readable", lambda value: False))
        yield launched


def microseconds(call: Callable[[], Any], repeats: int = 20, rounds: int = 150) -> float:
    """Processor time of a call: the least of many short rounds, some of which no other program disturbs."""
    for _ in range(10):
        call()
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(repeats):
            call()
        times.append((time.process_time() - begun) / repeats)
    return 1e6 * min(times)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", help="some operators only")
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "1"  # without it Triton refuses tensors of the CPU
    os.environ["ATEN_CPU_CAPABILITY"] = "default"  # a processor takes longer to wake its vector units than to add the few numbers of a call
    import torch

    torch.set_num_threads(1)
    with without_launches() as launched, torch.no_grad():
        for name, call in operators().items():
            if not options.operators or name in options.operators:
                launched.clear()
                call()
                count = len(launched)
                print(f"{name}: {microseconds(call):.0f} us beyond {count} launches (goal {GOAL:g})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
