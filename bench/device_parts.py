"""The parts of the device check. Each is a generator of its result so far, so that one that is cut short still leaves what it had.

A result has ``ok`` (None while nothing failed but nothing was shown either), a ``summary`` of one line, and the figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import cases
from bench.baselines.training import Sizes
from bench.ceilings import measure_ceilings
from bench.run import run_case
from bench.training import SMALL, OurStep, build_objective, images
from ddvi_fast import _backend, ops, rng, schedules
from ddvi_fast.rng import Draws

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where a part runs, whether small sizes will do, and how many seconds it has."""

    device: torch.device
    quick: bool
    seconds: float

    @property
    def backend(self) -> str:
        return "triton" if self.device.type == "cuda" else "cpp"


def random_numbers(setting: Setting) -> Iterator[Result]:
    """Words and uniforms bit for bit those of the formula on the CPU, normals to four units in the last place."""
    worst, compared = 0, 0
    for draws in (Draws(0), Draws((1 << 64) - 1, (1 << 33) - 3), Draws(12345, 7 * rng.IMPORTANCE_STRIDE)):
        for shape in ((1, 1), (257, 3), (4, 65, 16), (100_000 if not setting.quick else 1000, 5)):
            for stream in (rng.CHAIN, rng.DROPOUT + 3):
                formula = {kind: rng.formula(kind, draws, shape, stream)[0] for kind in ("words", "uniform", "normal")}
                assert torch.equal(rng.words(draws, shape, stream, setting.device).cpu(), formula["words"]), f"words {shape}"
                assert torch.equal(rng.uniform(draws, shape, stream, device=setting.device).cpu(), formula["uniform"]), f"uniforms {shape}"
                got = rng.normal(draws, shape, stream, device=setting.device).cpu()
                worst = max(worst, _units_apart(got, formula["normal"]))
                compared += got.numel()
    yield {
        "ok": worst <= 4,
        "summary": f"words and uniforms equal bit for bit, normals within {worst} units in the last place ({compared:,} numbers)",
    }


def _units_apart(got: torch.Tensor, expected: torch.Tensor) -> int:
    spacing = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
    return int(((got - expected).abs() / spacing).ceil().max())


def parity(operation: str, precision: str | None = None) -> Callable[[Setting], Iterator[Result]]:
    """All parity cases of an operation on the fused backend: every layout in float32, or contiguous tensors in another precision."""

    def part(setting: Setting) -> Iterator[Result]:
        from ddvi_fast import parity as known

        if setting.backend == "cpp" and precision in ("tf32", "fp16"):
            yield {"ok": None, "summary": "needs CUDA"}
            return
        # The absolute error's derivative jumps at zero, so that rounding decides single gradients.
        cases = [case for case in known.cases(operation, small=setting.quick) if precision is None or "absolute" not in case.name]
        jobs = [(case, layout) for case in cases for layout in (case.layouts if precision is None else ("contiguous",))]
        end, passed, failed, worst = time.monotonic() + setting.seconds, 0, [], 0.0
        for number, (case, layout) in enumerate(jobs):
            if time.monotonic() > end:
                failed.append(f"out of time after {number} of {len(jobs)} cases")
                yield {"ok": False, "summary": f"{passed} of {len(jobs)} agree; the first failure: {failed[0]}", "failed": failed}
                return
            try:
                if precision is None:
                    worst = max([worst, *known.check(case, setting.backend, setting.device, layout=layout).values()])
                else:
                    _check_rounded(case, setting, precision)
                passed += 1
            except Exception as error:  # the other cases are still worth knowing
                lines = str(error).splitlines() or [""]
                failed.append(f"{case} {precision or ''} {layout}: {type(error).__name__}: {' '.join(lines[:2])}"[:300])
            summary = f"{passed} of {len(jobs)} agree with float64, float32 off by at most {worst:.1e} of the largest value"
            yield {"ok": not failed, "summary": summary + (f"; {len(failed)} failed, the first: {failed[0]}" if failed else ""), "failed": failed}

    return part


# precision -> whose plain PyTorch is the yardstick (tf32 keeps as many bits as fp16), and the floor relative to the length
_YARDSTICKS = {"bf16": ("bf16", 2.0**-8), "fp16": ("fp16", 2.0**-11), "tf32": ("fp16", 2.0**-11)}


def _check_rounded(case: Any, setting: Setting, precision: str) -> None:
    """Values and gradients whose error, in length, is at most four times that of plain PyTorch with as many bits.

    Roundings that fall the other way make two right results differ by as much as each differs from float64, and the parity cases have
    few rows over which that would even out.
    """
    from ddvi_fast import parity as known

    plain_precision, floor = _YARDSTICKS[precision]
    exact = known.run(case, "reference", setting.device, torch.float64)
    plain = known.run(case, "reference", setting.device, precision=plain_precision)
    for name, value in known.run(case, setting.backend, setting.device, precision=precision).items():
        error, allowed = (value - exact[name]).norm(), 4 * (plain[name] - exact[name]).norm() + floor * exact[name].norm()
        assert error <= allowed, f"{name}: off by {float(error):.3g} in length, allowed {float(allowed):.3g}"


def golden(setting: Setting) -> Iterator[Result]:
    """Chain, density and discrepancy of the golden file, where it is at hand."""
    path = (ROOT / os.environ.get("DDVI_FAST_DATA", "../shared/data")).resolve().parent / "golden" / "ddvi_golden.npz"
    if not path.is_file():
        yield {"ok": None, "summary": "the golden file is not here (DDVI_FAST_DATA names the folder beside it)"}
        return
    import numpy as np

    from ddvi_fast import interop

    with np.load(path, allow_pickle=False) as stored:
        values = {name: torch.tensor(stored[name]) for name in stored.files if stored[name].dtype.kind in "fi"}
    errors = {}
    for name in ("uncond", "cond"):
        prefix = f"{name}/state/"
        denoiser = interop.denoiser_from_ddvi({key[len(prefix) :]: values[key] for key in values if key.startswith(prefix)}).to(setting.device)
        table = schedules.make("linear", denoiser.num_steps).coefficients("eps", eta=0.0).to(setting.device)
        context = values["cond/context"].to(setting.device) if name == "cond" else None
        sample = ops.sample_chain(values[f"{name}/x_T"].to(setting.device), context, denoiser, table, return_trajectory=True)
        errors[f"{name} trajectory"] = _relative(sample.trajectory, values[f"{name}/trajectory"])
    z, points = (values[f"kde/{name}"].to(setting.device) for name in ("z", "points"))
    density = ops.kde_log_density(z, points, values["kde/bandwidths"].tolist(), clamp=1000.0)
    errors["kernel density"] = _relative(density, values["kde/log_density_clamped"]) / 10
    discrepancy = ops.mmd(values["mmd/x"].to(setting.device), values["mmd/y"].to(setting.device), values["mmd/sigma"].tolist())
    errors["mmd"] = _relative(discrepancy, values["mmd/value"])
    worst = max(errors, key=errors.get)
    yield {"ok": errors[worst] <= 1e-5, "summary": f"{len(errors)} values, the worst of them {worst}: {errors[worst]:.1e}", "errors": errors}


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach().cpu() - expected).abs().max() / expected.abs().max())


def ceilings(setting: Setting) -> Iterator[Result]:
    """Matrix products, copies and exponentials a second."""
    found = measure_ceilings(setting.device, setting.quick)
    yield {"ok": True, "summary": ", ".join(f"{name} {value:.3g}/s" for name, value in found.items()), "ceilings": found}


def timings(setting: Setting) -> Iterator[Result]:
    """Every operation against eager; those against compiled eager follow while there is time."""
    chosen = [case for case in cases.in_set("quick" if setting.quick else "device") if case.operation != "training"]
    end, seconds, found = time.monotonic() + setting.seconds, 0.02 if setting.quick else 0.5, {}
    passes = [("eager", "ours", "ours_bf16")] if setting.quick else [("eager", "ours", "ours_bf16"), ("eager", "compiled", "ours", "ours_bf16")]
    for providers in passes:
        for case in chosen:
            if time.monotonic() > end or ("compiled" in providers and not _worth_compiling(case)):
                continue
            try:
                found[case.name] = run_case(case, setting.device, providers, seconds, memory=setting.device.type == "cuda")
            except Exception as error:  # such as too little memory for the baseline
                found.setdefault(case.name, {"name": case.name, "results": {"eager": {"failed": f"{type(error).__name__}: {error}"[:300]}}})
            yield _timed(found, len(chosen))


def _worth_compiling(case: cases.Case) -> bool:
    """A chain of many steps and groups takes minutes to compile."""
    return "G" not in dict(case.shape)


def _timed(found: dict[str, Any], wanted: int) -> Result:
    failed = [f"{name} {provider}" for name, case in found.items() for provider, result in case["results"].items() if "failed" in result]
    summary = f"{len(found)} of {wanted} cases timed" + (f"; failed: {', '.join(failed)}" if failed else "")
    return {"ok": not failed and len(found) == wanted, "summary": summary, "cases": list(found.values())}


def training(setting: Setting) -> Iterator[Result]:
    """The whole training step, checked and timed."""
    shape = {"N": 16, "T": 5, "small": True} if setting.quick else {"N": 128, "T": 40}
    case = cases.Case("training", tuple(shape.items()), True, frozenset())
    passes = [("eager", "ours", "ours_bf16")] if setting.quick else [("eager", "ours", "ours_bf16"), ("eager", "compiled", "ours", "ours_bf16")]
    for providers in passes:
        found = run_case(case, setting.device, providers, 0.05 if setting.quick else 2.0, memory=setting.device.type == "cuda")
        yield _timed({case.name: found}, 1)


def step(setting: Setting) -> Iterator[Result]:
    """A step asks nothing of the host; recorded and replayed it trains as it does unrecorded, with fresh numbers at every replay."""
    sizes, rows = (SMALL, 16) if setting.quick else (Sizes(), 128)
    x, plain = images(rows, sizes.pixels, setting.device), _losses(setting, sizes, rows, capture=False)
    distinct = len(set(plain)) == len(plain)
    if setting.device.type != "cuda":
        yield {"ok": distinct, "summary": f"{len(plain)} steps, every one with numbers of its own; host synchronisation and replay need CUDA"}
        return
    quiet = OurStep(build_objective(sizes, setting.device), setting.device, capture=False)
    for _ in range(3):
        quiet(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        quiet(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    yield {"ok": None, "summary": "no host synchronisation inside a step"}
    replayed = _losses(setting, sizes, rows, capture=True)
    apart = max(abs(one - other) / abs(one) for one, other in zip(plain, replayed, strict=True))
    summary = f"no host synchronisation inside a step; {len(plain)} losses recorded and unrecorded differ by at most {apart:.1e}, no two alike"
    yield {"ok": distinct and apart < 1e-4, "summary": summary, "plain": plain, "replayed": replayed}


def _losses(setting: Setting, sizes: Sizes, rows: int, capture: bool) -> list[float]:
    """Reconstruction terms of eight steps; a recorded step's tensors are overwritten by the next, so each is read at once."""
    ours, x = OurStep(build_objective(sizes, setting.device), setting.device, capture=capture), images(rows, sizes.pixels, setting.device)
    return [float(ours(x)["reconstruction"]) for _ in range(8)]


def quiet_operations(setting: Setting) -> Iterator[Result]:
    """Operations, forward and backward, without host synchronisation."""
    if setting.device.type != "cuda":
        yield {"ok": None, "summary": "needs CUDA"}
        return
    asked = []
    for case in cases.in_set("quick"):
        if case.operation == "training":
            continue
        run = case.build(setting.device).provider("ours")
        for _ in range(2):
            run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            asked.append(f"{case.name}: {str(error).splitlines()[0]}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    yield {"ok": not asked, "summary": "; ".join(asked) or "no operation makes the host wait", "asked": asked}


def kernels(setting: Setting) -> Iterator[Result]:
    """What was really compiled for this device beside the table of ahead-of-time figures: no spills, and every launched variant in the table."""
    if setting.device.type != "cuda":
        yield {"ok": None, "summary": "needs CUDA"}
        return
    import json

    from bench import ahead_of_time

    for case in cases.in_set("quick"):
        if case.operation != "training":
            for provider in case.providers:
                if provider.startswith("ours"):
                    case.build(setting.device).provider(provider)()
    table = json.loads(ahead_of_time.RESULTS.read_text())["kernels"] if ahead_of_time.RESULTS.is_file() else {}
    major, minor = torch.cuda.get_device_capability(setting.device)
    capability = 10 * major + minor
    listed = {name: compilation for (name, architecture), compilation in ahead_of_time.listed().items() if architecture == capability}
    launched, unlisted = [], []
    for kernel in {id(compilation.kernel): compilation.kernel for compilation in listed.values()}.values():
        rows = [table.get(name, {}).get(f"sm_{capability}") for name, compilation in listed.items() if compilation.kernel is kernel]
        expected = {(row["registers"], row["shared"]) for row in rows if row}
        for compiled in _compiled_variants(kernel):
            figures = {"registers": compiled.n_regs, "spills": compiled.n_spills, "shared": compiled.metadata.shared}
            launched.append({"kernel": kernel.__name__, **figures})
            if (figures["registers"], figures["shared"]) not in expected:
                unlisted.append(f"{kernel.__name__} {figures}")
    spilling = [entry for entry in launched if entry["spills"]]
    summary = (
        f"{len(launched)} variants launched, {len(spilling)} with spills, {len(unlisted)} with figures that the ahead-of-time table does not have"
    )
    yield {"ok": not spilling and bool(launched), "summary": summary, "launched": launched, "unlisted": unlisted}


def _compiled_variants(kernel: Any) -> list[Any]:
    """What Triton keeps of a kernel after its launches."""
    return [compiled for entry in kernel.device_caches.values() for compiled in entry[0].values()]


@dataclass(frozen=True)
class Part:
    """A part, the seconds that it may take on a GPU, and whether nothing else may run meanwhile."""

    run: Callable[[Setting], Iterator[Result]]
    seconds: float
    alone: bool = False


PARTS: dict[str, Part] = {
    "random numbers": Part(random_numbers, 60),
    **{f"parity {operation}": Part(parity(operation), 150) for operation in _backend.OPERATIONS},
    **{f"parity {operation} {precision}": Part(parity(operation, precision), 150) for operation in ("chain", "sleep") for precision in _YARDSTICKS},
    "golden values": Part(golden, 60),
    "step": Part(step, 100),
    "host waits": Part(quiet_operations, 100),
    "kernels": Part(kernels, 100),
    "ceilings": Part(ceilings, 40, alone=True),
    "training": Part(training, 120, alone=True),
    "timings": Part(timings, 120, alone=True),
}
