"""Where our training step spends its time.

    python -m bench.breakdown --threads 2 --bf16

Time inside operators is summed by kind from the profiler; what the host spends between operators is what is left of the step. Then the
forward passes of the dense networks, each with how often it runs.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from bench.baselines.training import Sizes
from bench.training import OurStep, build_objective, images

# First match counts; `ddvi_fast_` are the fused operators, forward and backward.
KINDS = (
    ("optimiser", ("adam",)),
    ("chain", ("ddvi_fast_chain",)),
    ("sleep regression", ("ddvi_fast_sleep",)),
    ("kernel density", ("ddvi_fast_kde",)),
    ("likelihoods and divergences", ("ddvi_fast_elbo", "ddvi_fast_log_mean_exp")),
    ("random numbers", ("ddvi_fast_fill",)),
    ("noising", ("ddvi_fast_add_noise",)),
    ("other fused operators", ("ddvi_fast_",)),
    ("dense products", ("mm", "mkldnn", "linear", "gemm")),
    ("casts and copies", ("copy", "aten_to")),
)
OTHER, HOST = "other operators", "host, between operators"


def breakdown(step: Callable[[], object], device: torch.device, repeats: int = 10) -> dict[str, float]:
    """Milliseconds a step by kind of work, the largest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    whole = (time.perf_counter() - start) * 1000 / repeats
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            step()
    found: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        found[_kind(event.key)] += microseconds / 1000 / repeats
    # The profiler itself costs time, so operators can add up to more than an undisturbed step.
    found[HOST] = max(0.0, whole - sum(found.values()))
    return {"whole step": whole, **dict(sorted(found.items(), key=lambda item: -item[1]))}


def forward_passes(step: OurStep, x: torch.Tensor, repeats: int = 10) -> dict[str, tuple[float, float]]:
    """Of each dense network: milliseconds a step in its forward passes, and how many those are; on a GPU the host's time alone."""
    posterior, spent = step.engine.objective.posterior, defaultdict(list)
    modules = {"encoder": posterior.encoder, "context encoder": posterior.context_encoder, "decoder": step.engine.objective.model.decoder}
    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: spent[name].append(-time.perf_counter())))
        handles.append(module.register_forward_hook(lambda *_, name=name: spent[name].append(time.perf_counter())))
    for _ in range(repeats):
        step(x)
    for handle in handles:
        handle.remove()
    return {name: (sum(times) * 1000 / repeats, len(times) / 2 / repeats) for name, times in spent.items()}


def _kind(name: str) -> str:
    lowered = name.lower().replace("::", "_")
    return next((kind for kind, words in KINDS if any(word.lower() in lowered for word in words)), OTHER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile-networks", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, sizes = torch.device(options.device), Sizes()
    # A replayed recording has no operators to tell apart.
    step = OurStep(build_objective(sizes, device), device, options.bf16, capture=False, compile_networks=options.compile_networks)
    x = images(options.rows, sizes.pixels, device)
    for kind, milliseconds in breakdown(lambda: step(x), device).items():
        print(f"{kind:32s} {milliseconds:9.2f} ms")
    for name, (milliseconds, times) in forward_passes(step, x).items():
        print(f"forward passes, {name:16s} {milliseconds:9.2f} ms in {times:g}")


if __name__ == "__main__":
    main()
