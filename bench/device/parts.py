"""Parts of the device check. Each is a generator of its result so far, so that a part that is stopped still leaves a result.

A result has ``ok`` (True, False, or None if nothing was tested), a ``summary`` of one line, and numbers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import cases, records
from bench.baselines.training import Sizes
from bench.ceilings import measure_ceilings
from bench.device import ahead_of_time, predictions, runs
from bench.run import run_case
from bench.steps import OurStep, images
from bench.timing import time_together
from bench.training import PROGRESS, SMALL, build_objective
from ddvi_fast import _backend, interop, ops, rng, schedules
from ddvi_fast import parity as known
from ddvi_fast._checks import InputError
from ddvi_fast.rng import Draws

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "values.npz"
Result = dict[str, Any]
PROVIDERS = ("eager", "ours", "ours_bf16")


@dataclass(frozen=True)
class Setting:
    """Device of a part, whether it runs small sizes, and its time limit in seconds."""

    device: torch.device
    quick: bool
    seconds: float

    @property
    def backend(self) -> str:
        return "triton" if self.device.type == "cuda" else "cpp"


def random_numbers(setting: Setting) -> Iterator[Result]:
    """Words and uniforms equal those of the formula on the CPU bit for bit, normals to four units in the last place."""
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


def parity(
    operation: str, precision: str | None = None, batch: int = 0, batches: int = 1, backend: str | None = None
) -> Callable[[Setting], Iterator[Result]]:
    """Make the part that runs parity cases of an operation: every layout in float32, or contiguous tensors in another precision.

    Args:
        operation: Name of the operation.
        precision: Precision of the hidden products, None for float32 (default None).
        batch, batches: Which of how many batches of the cases. Cases that share compilations are in one batch.
        backend: Name of the backend (default None: the fused one of the device); cases that it refuses are left out.
    """

    def part(setting: Setting) -> Iterator[Result]:
        # The absolute error's derivative jumps at zero, so that rounding decides single gradients.
        chosen = [case for case in known.cases(operation, small=setting.quick) if precision is None or "absolute" not in case.name]
        chosen = _batch(chosen, batch, batches)
        jobs = [(case, layout) for case in chosen for layout in (case.layouts if precision is None else ("contiguous",))]
        end, passed, failed, refused, worst = time.monotonic() + setting.seconds, 0, [], 0, 0.0
        for number, (case, layout) in enumerate(jobs):
            if time.monotonic() > end:
                yield _compared(len(jobs) - number, passed, failed, refused, worst)
                return
            try:
                if precision is None:
                    worst = max([worst, *known.check(case, backend or setting.backend, setting.device, layout=layout).values()])
                else:
                    _check_rounded(case, setting, precision, backend or setting.backend)
                passed += 1
            except InputError as error:  # the backend does not take this case
                refused += 1
                failed += [] if backend else [f"{case} {precision or ''} {layout}: {error}"[:300]]
            except Exception as error:  # recorded, so that the other cases are run
                lines = str(error).splitlines() or [""]
                failed.append(f"{case} {precision or ''} {layout}: {type(error).__name__}: {' '.join(lines[:2])}"[:300])
            yield _compared(len(jobs) - number - 1, passed, failed, refused if backend else 0, worst)

    return part


def _batch(chosen: list[Any], batch: int, batches: int) -> list[Any]:
    """The cases of a batch: those with the same widths and number of groups stand together, in the same batch."""

    def widths(case: Any) -> tuple[str, ...]:
        shape = re.match(r"\(([^)]*)\)", case.name)
        return tuple(shape[1].split(", ")[2:]) if shape else (case.name,)

    keys = sorted({widths(case) for case in chosen})[batch::batches]
    return [case for key in keys for case in chosen if widths(case) == key]


def _compared(missing: int, passed: int, failed: list[str], refused: int, worst: float) -> Result:
    """The result so far; cases that were not run for lack of time are counted, and are no failure."""
    counts = [f"{passed + len(failed)} run", f"{passed} passed", *([f"{len(failed)} failed"] if failed else []), f"{missing} not run"]
    counts += [f"{refused} that the backend does not take"] if refused else []
    summary = f"{', '.join(counts)}; float32 off by at most {worst:.1e} of the largest value"
    summary += f"; the first failure: {failed[0]}" if failed else ""
    return {"ok": False if failed else None if missing or not passed else True, "summary": summary, "failed": failed}


# precision -> precision of plain PyTorch that sets the tolerance (tf32 has as many bits as fp16), and its floor relative to the norm
_TOLERANCES = {"bf16": ("bf16", 2.0**-8), "fp16": ("fp16", 2.0**-11), "tf32": ("fp16", 2.0**-11)}
_GRADIENTS = 16  # times the floor, for gradients: about the share of one row of 70 that rounding moves to the other side of a ReLU's kink


def _check_rounded(case: Any, setting: Setting, precision: str, backend: str) -> None:
    """Check that the error of values and gradients, in norm, is at most four times that of plain PyTorch with as many bits.

    Two correct results with independent roundings differ by as much as each differs from float64, and the parity cases have too few rows for
    this to average out. Gradients jump where rounding moves a hidden unit of a row to the other side of a ReLU's kink, in one result or the
    other, and have a higher floor.
    """
    plain_precision, floor = _TOLERANCES[precision]
    exact = known.run(case, "reference", setting.device, torch.float64)
    plain = known.run(case, "reference", setting.device, precision=plain_precision)
    for name, value in known.run(case, backend, setting.device, precision=precision).items():
        least = floor * (_GRADIENTS if name.startswith("d_") else 1)
        error, allowed = (value - exact[name]).norm(), 4 * (plain[name] - exact[name]).norm() + least * exact[name].norm()
        assert error <= allowed, f"{name}: off by {float(error):.3g} in norm, allowed {float(allowed):.3g}"


def golden(setting: Setting) -> Iterator[Result]:
    """Chain, kernel density and MMD compared with the golden values."""
    if not GOLDEN.is_file():
        yield {"ok": None, "summary": f"{GOLDEN.name} is missing"}
        return
    with np.load(GOLDEN, allow_pickle=False) as stored:
        values = {name: torch.tensor(stored[name], device=setting.device) for name in stored.files}
    errors = {}
    for name in ("uncond", "cond"):
        prefix = f"{name}/state/"
        denoiser = interop.denoiser_from_ddvi({key[len(prefix) :]: values[key] for key in values if key.startswith(prefix)}).to(setting.device)
        table = schedules.make("linear", denoiser.num_steps).coefficients("eps", eta=0.0).to(setting.device)
        sample = ops.sample_chain(values[f"{name}/x_T"], values.get(f"{name}/context"), denoiser, table, return_trajectory=True)
        errors[f"{name} trajectory"] = _relative(sample.trajectory, values[f"{name}/trajectory"])
    density = ops.kde_log_density(values["kde/z"], values["kde/points"], values["kde/bandwidths"].tolist(), clamp=1000.0)
    errors["kernel density"] = _relative(density, values["kde/log_density_clamped"]) / 10
    errors["mmd"] = _relative(ops.mmd(values["mmd/x"], values["mmd/y"], values["mmd/sigma"].tolist()), values["mmd/value"])
    worst = max(errors, key=errors.get)
    yield {"ok": errors[worst] <= 1e-5, "summary": f"{len(errors)} values, the worst of them {worst}: {errors[worst]:.1e}", "errors": errors}


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach() - expected).abs().max() / expected.abs().max())


def ceilings(setting: Setting) -> Iterator[Result]:
    """Peak rates of matrix products, copies and exponentials."""
    found = measure_ceilings(setting.device, setting.quick)
    yield {"ok": True, "summary": ", ".join(f"{name} {value:.3g}/s" for name, value in found.items()), "ceilings": found}


def timings(setting: Setting) -> Iterator[Result]:
    """Time every operation against eager PyTorch, then against torch.compile while there is time."""
    chosen = [case for case in cases.in_set("quick" if setting.quick else "device") if case.operation != "training"]
    if setting.quick:  # one of each operation
        chosen = list({case.operation: case for case in reversed(chosen)}.values())
    return _timed(setting, chosen, 0.02 if setting.quick else 0.5)


def training(setting: Setting) -> Iterator[Result]:
    """Check and time the whole training step."""
    shape = {"N": 16, "T": 5, "small": True} if setting.quick else {"N": 128, "T": 40}
    return _timed(setting, [cases.Case("training", tuple(shape.items()), True, frozenset())], 0.05 if setting.quick else 2.0)


def _timed(setting: Setting, chosen: Sequence[cases.Case], seconds: float) -> Iterator[Result]:
    """Check and time cases; torch.compile comes last, because it takes long."""
    end, found = time.monotonic() + setting.seconds, {}
    for providers in [PROVIDERS] if setting.quick else [PROVIDERS, (*PROVIDERS, "compiled")]:
        for case in chosen:
            if time.monotonic() > end or ("compiled" in providers and "G" in dict(case.shape)):  # a grouped chain takes minutes to compile
                continue
            try:
                found[case.name] = run_case(case, setting.device, providers, seconds, memory=setting.device.type == "cuda")
            except Exception as error:  # for example too little memory for the baseline
                found.setdefault(case.name, {"name": case.name, "results": {"eager": {"failed": f"{type(error).__name__}: {error}"[:300]}}})
            failed = [f"{name} {key}" for name, each in found.items() for key, result in each["results"].items() if "failed" in result]
            summary = f"{len(found)} of {len(chosen)} cases timed" + (f"; failed: {', '.join(failed)}" if failed else "")
            yield {"ok": False if failed else len(found) == len(chosen) or None, "summary": summary, "cases": list(found.values())}


def step(setting: Setting) -> Iterator[Result]:
    """Check that a step never synchronizes with the host, and that a replayed CUDA graph trains as the step itself does, with fresh noise."""
    sizes, rows = (SMALL, 16) if setting.quick else (Sizes(), 128)
    x, plain = images(rows, sizes.pixels, setting.device), _losses(setting, sizes, rows, capture=False)
    distinct = len(set(plain)) == len(plain)
    if setting.device.type != "cuda":
        yield {"ok": distinct, "summary": f"{len(plain)} steps, no two losses alike; host synchronization and replay need CUDA"}
        return
    quiet = OurStep(build_objective(sizes, setting.device), setting.device, PROGRESS, capture=False)
    for _ in range(3):
        quiet(x)
    with _no_synchronization():
        quiet(x)
    yield {"ok": None, "summary": "no host synchronization inside a step"}
    replayed = _losses(setting, sizes, rows, capture=True)
    apart = max(abs(one - other) / abs(one) for one, other in zip(plain, replayed, strict=True))
    summary = f"no host synchronization inside a step; {len(plain)} losses recorded and unrecorded differ by at most {apart:.1e}, no two alike"
    yield {"ok": distinct and apart < 1e-4, "summary": summary, "plain": plain, "replayed": replayed}


def _losses(setting: Setting, sizes: Sizes, rows: int, capture: bool) -> list[float]:
    """Reconstruction terms of eight steps, each read at once because a replay overwrites the tensors of the one before."""
    ours = OurStep(build_objective(sizes, setting.device), setting.device, PROGRESS, capture=capture)
    x = images(rows, sizes.pixels, setting.device)
    return [float(ours(x)["reconstruction"]) for _ in range(8)]


def quiet_operations(setting: Setting) -> Iterator[Result]:
    """Operations, forward and backward, without host synchronization."""
    found = []
    for case in _quick_operations():
        run = case.build(setting.device).provider("ours")
        for _ in range(2):
            run()
        try:
            with _no_synchronization():
                run()
        except RuntimeError as error:
            found.append(f"{case.name}: {str(error).splitlines()[0]}")
    yield {"ok": not found, "summary": "; ".join(found) or "no operation makes the host wait", "asked": found}


@contextmanager
def _no_synchronization() -> Iterator[None]:
    """Host synchronization raises a RuntimeError inside."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _quick_operations() -> list[cases.Case]:
    return [case for case in cases.in_set("quick") if case.operation != "training"]


def kernels(setting: Setting) -> Iterator[Result]:
    """Compare the kernels that were launched with the table of ahead-of-time compilation: spills within its bounds, every variant in the table."""
    for case in _quick_operations():
        for provider in case.providers:
            if provider.startswith("ours"):
                case.build(setting.device).provider(provider)()
    table = records.read(ahead_of_time.RESULTS)["kernels"] if ahead_of_time.RESULTS.is_file() else {}
    major, minor = torch.cuda.get_device_capability(setting.device)
    capability = 10 * major + minor
    found = ahead_of_time.listed().items()
    listed = {name: each for (name, architecture), each in found if architecture == capability and ahead_of_time.compiler_of(name) == "triton"}
    launched, unlisted = [], []
    for kernel in {id(compilation.kernel): compilation.kernel for compilation in listed.values()}.values():
        rows = [table.get(name, {}).get(f"sm_{capability}") for name, compilation in listed.items() if compilation.kernel is kernel]
        expected = {(row["registers"], row["shared"]) for row in rows if row}
        for compiled in _compiled_variants(kernel):
            figures = {"registers": compiled.n_regs, "spills": compiled.n_spills, "shared": compiled.metadata.shared}
            launched.append({"kernel": kernel.__name__, **figures})
            if (figures["registers"], figures["shared"]) not in expected:
                unlisted.append(f"{kernel.__name__} {figures}")
    spilling = [entry for entry in launched if 4 * entry["spills"] > ahead_of_time.most_local(entry["kernel"])]  # Triton counts words
    summary = f"{len(launched)} variants launched, {len(spilling)} with unexpected spills, {len(unlisted)} that differ from the ahead-of-time table"
    yield {"ok": not spilling and bool(launched), "summary": summary, "launched": launched, "unlisted": unlisted}


def replays(setting: Setting) -> Iterator[Result]:
    """Time calls beside replays of a CUDA graph of one call: what a replay does not take is the host's."""
    return timed_replays([cases.by_name(name) for name in REPLAYED], setting, captured)


def timed_replays(chosen: Sequence[cases.Case], setting: Setting, capture: Callable[[Callable], Callable]) -> Iterator[Result]:
    """Time calls of cases and what `capture` makes of them; where a replay has a goal, it is compared."""
    end, rows, failed, missing = time.monotonic() + setting.seconds, [], [], 0
    for case, provider in [(each, name) for each in chosen for name in each.providers if name.startswith("ours")]:
        if time.monotonic() > end:
            missing += 1
            continue
        try:
            call = case.build(setting.device).provider(provider)
            times = time_together({"call": call, "replay": capture(call)}, setting.device, seconds=0.02 if setting.quick else 0.3)
            row = {"case": case.name, "provider": provider, **{name: timing.median for name, timing in times.items()}}
            rows.append({**row, "goal": REPLAYED.get(case.name, {}).get(provider)})
        except Exception as error:  # recorded, so that the other cases are run
            failed.append(f"{case.name} {provider}: {type(error).__name__}: {' '.join(str(error).split())}"[:300])
        slow = [f"{row['case']} {row['provider']} {row['replay']:.3g} ms" for row in rows if row["goal"] and row["replay"] > row["goal"]]
        summary = f"{len(rows) + len(failed)} run, {len(rows)} passed, {missing} not run" + f"; slower than wanted: {', '.join(slow)}" * bool(slow)
        summary += f"; the first failure: {failed[0]}" if failed else ""
        yield {"ok": False if failed else None if missing else True, "summary": summary, "failed": failed, "rows": rows}


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a CUDA graph of one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def races(setting: Setting) -> Iterator[Result]:
    """NVIDIA's racecheck over chains of few rows, for ten seconds, where `compute-sanitizer` is installed."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        yield {"ok": None, "summary": "0 run; compute-sanitizer is not installed"}
        return
    command = [tool, "--tool", "racecheck", "--error-exitcode", "99", sys.executable, "-m", "bench.device.races"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=setting.seconds, cwd=Path(__file__).resolve().parents[2])
    except subprocess.TimeoutExpired:
        yield {"ok": None, "summary": f"not finished in {setting.seconds:.0f} s"}
        return
    lines = [line.strip("= ") for line in ran.stdout.splitlines() if "RACECHECK SUMMARY" in line or line.startswith("chains")]
    yield {"ok": ran.returncode == 0, "summary": "; ".join(lines) or f"exit code {ran.returncode}: {ran.stderr.strip()[-200:]}"}


def model(setting: Setting) -> Iterator[Result]:
    """Times of single kernels beside those that the static model predicts for the binaries that run here."""
    end, rows, missing = time.monotonic() + setting.seconds, [], 0
    jobs = [(case, precision) for case in map(cases.by_name, REPLAYED) for precision in predictions.precisions(case)]
    for case, precision in jobs:
        if time.monotonic() > end:
            missing += 1
            continue
        provider = next(name for name, known_as in predictions.PRECISIONS.items() if known_as == precision)
        measured = kernel_times(case.build(setting.device).provider(provider))
        found = predictions.predicted(predictions.calls(case, precision)) + predictions.predicted_in_cuda(case, precision)
        rows += paired(case.name, precision, found, measured)
        off = sorted(abs(row["predicted"] / row["measured"] - 1) for row in rows)
        error = f", median error {off[len(off) // 2]:.0%}" if off else ""
        yield {"ok": None if missing else True, "summary": f"{len(rows)} kernels compared{error}, {missing} cases not run", "rows": rows}


def paired(case: str, precision: str, found: Sequence[predictions.Predicted], measured: dict[str, float]) -> list[dict[str, Any]]:
    """Predicted and measured milliseconds of each kernel that has both."""
    names = list(dict.fromkeys(each.kernel.split()[0] for each in found))
    rows = []
    for name in names:
        times = [each.microseconds for each in found if each.kernel.split()[0] == name]
        if name in measured and None not in times:
            rows.append({"case": case, "precision": precision, "kernel": name, "predicted": sum(times) / 1000, "measured": measured[name]})
    return rows


def kernel_times(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each kernel in a call, by name."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 5000 for event in recorded.key_averages()}


# Cases whose graph is replayed, with the milliseconds wanted of a provider.
REPLAYED: dict[str, dict[str, float]] = {
    "chain N=128 T=40 D=2 C=2 H=128 ancestral forward": {},
    "chain N=128 T=40 D=2 C=2 H=128 ancestral forward+backward": {"ours": 0.26, "ours_bf16": 0.18},
    "chain N=65536 T=40 D=2 C=2 H=128 ancestral forward": {},
    "chain N=65536 T=40 D=2 C=2 H=128 ancestral forward+backward": {"ours_bf16": 6.0},
    "sleep N=65536 T=40 D=2 forward+backward": {"ours_bf16": 0.5},
}


def _compiled_variants(kernel: Any) -> list[Any]:
    """Compiled variants that Triton holds of a kernel."""
    return [compiled for entry in kernel.device_caches.values() for compiled in entry[0].values()]


@dataclass(frozen=True)
class Part:
    """A part of the device check.

    Args:
        run: Generator of its result so far.
        seconds: Time limit on a GPU in seconds (float).
        alone: Whether no other part may run at the same time (bool, default False).
        cuda: Whether the part needs CUDA (bool, default False).
    """

    run: Callable[[Setting], Iterator[Result]]
    seconds: float
    alone: bool = False
    cuda: bool = False

    def results(self, setting: Setting) -> Iterator[Result]:
        """Results of the part on a device; a part that needs CUDA tests nothing elsewhere."""
        if self.cuda and setting.device.type != "cuda":
            return iter([{"ok": None, "summary": "needs CUDA"}])
        return self.run(setting)


_BATCHES = 3  # of the parity cases of an operation with a denoiser, whose compilation takes longest
_DENOISERS = ("chain", "sleep")
PARTS: dict[str, Part] = {
    "random numbers": Part(random_numbers, 60),
    **{f"parity {operation}": Part(parity(operation), 120) for operation in _backend.OPERATIONS if operation not in _DENOISERS},
    **{
        " ".join(["parity", operation, *([precision] if precision else []), f"{batch + 1} of {_BATCHES}"]): Part(
            parity(operation, precision, batch, _BATCHES), 120, cuda=precision in ("fp16", "tf32")
        )
        for operation in _DENOISERS
        for precision in (None, *_TOLERANCES)
        for batch in range(_BATCHES)
    },
    **{
        " ".join(["parity chain in CUDA C++", *([precision] if precision else [])]): Part(parity("chain", precision, backend="cuda"), 120, cuda=True)
        for precision in (None, *_TOLERANCES)
    },
    "golden values": Part(golden, 60),
    "step": Part(step, 100),
    "host waits": Part(quiet_operations, 100, cuda=True),
    "kernels": Part(kernels, 100, cuda=True),
    "run": Part(runs.one_run, 120),
    "table": Part(runs.table, 120),
    "launched": Part(runs.launched, 120),
    # One after another, what matters first: what does not fit into the time is not run.
    "ceilings": Part(ceilings, 20, alone=True),
    "training": Part(training, 80, alone=True),
    "side by side": Part(runs.side_by_side, 30, alone=True),
    "replays": Part(replays, 45, alone=True, cuda=True),
    "timings": Part(timings, 60, alone=True),
    "model": Part(model, 30, alone=True, cuda=True),
    "races": Part(races, 30, alone=True, cuda=True),
}
# The parts that cover the kernels around the denoiser: less than seven minutes on a GPU.
DENOISER_PARTS = [
    name for name in PARTS if name.startswith(("parity chain", "parity sleep")) or name in ("golden values", "kernels", "replays", "model", "races")
]
