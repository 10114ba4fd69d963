"""Compilation of every kernel for sm_80, sm_90 and sm_100 without a GPU: a table of what the machine code takes, and predicted times.

    python -m bench.device.ahead_of_time            # writes bench/results/ahead_of_time.json and .md
    python -m bench.device.ahead_of_time --all      # the same, and compiles again what has not changed
    python -m bench.device.ahead_of_time --check    # compiles again and compares with the table
    python -m bench.device.ahead_of_time --check --first-variants    # only the first variant of each kernel
    python -m bench.device.ahead_of_time --module kde    # prints the rows of one module

Every module in kernels/ lists the variants that it launches (`compilations()`), and so does ddvi_fast/cuda/chain.py, whose CUDA C++ is compiled by
NVRTC (`pip install nvidia-cuda-nvrtc`). Spilled registers go to a thread's local memory: "no spills" means
that a kernel has no local memory at all, as `cuobjdump` reads it from the machine code. Barriers and global accesses are those of the main loop,
which is that over steps where a kernel has one. Times are those of `bench.device.predictions` at the sizes of the benchmark's device cases.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any

from bench import cases, records
from bench.device import predictions, sass
from ddvi_fast import _markdown
from ddvi_fast.cuda import chain, compiler, nvrtc

RESULTS = records.RESULTS / "ahead_of_time.json"
CUDA_MODULE = "cuda"  # stands for ddvi_fast/cuda/chain.py
KERNELS = records.RESULTS.parents[1] / "kernels"
# Largest shared memory of a program in bytes (CUDA C++ Programming Guide, technical specifications per compute capability).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

# What is counted in the main loop -> opcodes.
COUNTED = {"barriers": ("BAR",), "loads": ("LDG", "LDGSTS"), "stores": ("STG", "RED", "ATOM", "ATOMG")}

# Most bytes of local memory a thread of kernels that spill: their time with the spills is in the predictions.
SPILLS = {"chain_fwd_kernel": 512, "chain_bwd_kernel": 512, "denoiser_bwd_kernel_weights": 1024, "sleep_fwd_kernel": 1024}

_TRAP = 4  # most registers of a kernel of which the compiler left a single instruction

Usage = dict[str, int]  # registers, local, shared; in the main loop: barriers, loads, stores
Table = dict[str, dict[str, Usage]]  # by variant, then by architecture as in "sm_90"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if the check finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--first-variants", action="store_true", help="with --check: the first variant of each kernel only")
    parser.add_argument("--module", help=f"print the rows of one module of kernels/, or of {CUDA_MODULE}, and write nothing")
    parser.add_argument("--all", action="store_true", help="also compile the variants whose sources have not changed since the table was written")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.first_variants and not options.check:
        parser.error("--first-variants needs --check: the table has every variant")
    # Before Triton is imported, here and in the processes that compile: the interpreter has nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    versions = {"triton": triton.__version__, "nvrtc": nvrtc.version() if nvrtc.available()[0] else None}
    if not (versions["nvrtc"] or options.check or options.module):
        parser.error(f"the table needs NVRTC: {nvrtc.available()[1]}")
    if options.check:
        table = compile_all(jobs(first_variants=options.first_variants), options.processes)
        problems = check(records.read(RESULTS), versions, table, sorted({name for name, _ in listed()}))
    elif options.module:
        table = compile_all(jobs(options.module), options.processes)
        problems = faults(table)
        print(markdown({**versions, "kernels": table, "predictions": []}))
    else:
        table = update({} if options.all or not RESULTS.is_file() else records.read(RESULTS), versions, options.processes)
        problems = faults(table)
    compilers = " and ".join(f"{name} {version}" for name, version in versions.items() if version)
    print("\n".join(problems) or f"{len(table)} kernel variants for {len(SHARED_LIMIT)} architectures with {compilers}: no unexpected spills")
    return 1 if problems else 0


def update(known: dict[str, Any], versions: dict[str, str | None], processes: int) -> Table:
    """Compile what the table does not have yet, predict, and write the table; also in between, so that a stopped run is continued by the next."""
    digests = {job: digest(listed()[job], job[1], versions) for job in jobs()}
    table: Table = {}
    for name, capability in jobs():
        stored = known.get("digests", {}).get(name, {}).get(f"sm_{capability}")
        if stored == digests[name, capability]:
            table.setdefault(name, {})[f"sm_{capability}"] = known["kernels"][name][f"sm_{capability}"]
    missing = [(name, capability) for name, capability in jobs() if f"sm_{capability}" not in table.get(name, {})]
    record = {"kind": "bench.device.ahead_of_time", **versions, "predictions": known.get("predictions", [])}

    def write() -> None:
        done = {name: table[name] for name in dict.fromkeys(name for name, _ in jobs()) if name in table}
        kept = {name: {architecture: digests[name, int(architecture[3:])] for architecture in rows} for name, rows in done.items()}
        records.write(RESULTS, {**record, "kernels": done, "digests": kept})

    for start in range(0, len(missing), _AT_ONCE):
        for name, rows in compile_all(missing[start : start + _AT_ONCE], processes).items():
            table.setdefault(name, {}).update(rows)
        write()
    record["predictions"] = predict_all(processes)
    write()
    return table


_AT_ONCE = 24  # compilations between two writes of the table


def digest(wanted: Any, capability: int, versions: dict[str, str | None]) -> str:
    """A digest of everything that the binary of a variant is made from."""
    if hasattr(wanted, "variant"):
        source, flags = compiler.folder() / wanted.variant.kernel.source, compiler.options(capability, dict(wanted.variant.macros))
        return compiler.key(source.read_text(encoding="utf-8"), compiler.headers(), flags, str(versions["nvrtc"]))[:16]
    parts = (wanted.kernel.cache_key, wanted.signature, sorted(wanted.constexprs.items(), key=str), wanted.num_warps, wanted.num_stages, capability)
    return hashlib.sha256(f"{versions['triton']} {parts}".encode()).hexdigest()[:16]


def jobs(module: str = "*", first_variants: bool = False) -> list[tuple[str, int]]:
    """Name and architecture of every variant of a module, or of the first variant of each kernel."""
    chosen, seen = [], set()
    for name, capability in listed(module):
        kernel = (name.split()[0], capability)
        if not first_variants or kernel not in seen:
            chosen.append((name, capability))
        seen.add(kernel)
    return chosen


def compile_all(chosen: list[tuple[str, int]], processes: int) -> Table:
    """Compile variants, on several processes; results stay in Triton's cache."""
    table: Table = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for (name, capability), used in zip(chosen, pool.map(compile_one, chosen), strict=True):
            table.setdefault(name, {})[f"sm_{capability}"] = used
    return table


@lru_cache
def listed(module: str = "*") -> dict[tuple[str, int], Any]:
    """Every `Compilation` of the matching modules in kernels/, by name and architecture; a name may stand for a different variant on each."""
    found: dict[tuple[str, int], Any] = {}
    seen = set()
    for file in sorted(KERNELS.glob(f"{module}.py")):
        kernels = importlib.import_module(f"ddvi_fast.kernels.{file.stem}")
        for compilation in getattr(kernels, "compilations", list)():
            key, content = (compilation.name, compilation.architecture), str({**vars(compilation), "name": compilation.kernel.__name__})
            if content not in seen:  # several sizes may launch the same variant
                seen.add(content)
                if key in found:
                    raise ValueError(f"kernels/{file.name}: two variants for sm_{compilation.architecture} are called {compilation.name}")
                found[key] = compilation
    if module == "*" or module == CUDA_MODULE:
        found |= {(each.name, capability): each for each in _cuda_compilations() for capability in SHARED_LIMIT}
    return found


def _cuda_compilations() -> list[Any]:
    """The variants in CUDA C++, none where NVRTC is missing."""
    usable, reason = nvrtc.available()
    if not usable:
        print(f"ddvi_fast/cuda: not compiled; {reason}", file=sys.stderr)
    return list(chain.compilations()) if usable else []


def compile_one(job: tuple[str, int]) -> Usage:
    """Registers and bytes of local memory of a thread, bytes of shared memory of a program, and what stands in the main loop."""
    wanted, (_, capability) = listed()[job], job
    return usage(predictions.binary(wanted, capability))


def usage(compiled: predictions.Binary) -> Usage:
    """What a kernel takes."""
    used, program = sass.resources(compiled.cubin), sass.disassembled(compiled.cubin)
    counts = {what: program.count(program.main_loop, *names) for what, names in COUNTED.items()}
    shared = compiled.shared(used["SHARED"])
    return {"registers": used["REG"], "local": used["STACK"] + used["LOCAL"], "shared": shared, **counts}


def predict_all(processes: int) -> list[dict[str, Any]]:
    """Predicted times of the launches of every device case, one after another."""
    jobs = [(case.name, precision) for case in cases.in_set("device") for precision in predictions.precisions(case)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return [row for rows in pool.map(predict_one, jobs) for row in rows]


def predict_one(job: tuple[str, str]) -> list[dict[str, Any]]:
    """Predicted times of the launches of a case in a precision; a chain of few rows has those of the CUDA C++ kernels as well."""
    name, precision = job
    case = cases.by_name(name)
    found, in_cuda = predictions.predicted(predictions.calls(case, precision)), predictions.predicted_in_cuda(case, precision)
    if in_cuda and case.backward:  # the weight gradients are Triton's
        in_cuda += [each for each in found if each.kernel.startswith("denoiser_")]
    rows = [{"case": name, "precision": precision, **vars(each)} for each in found]
    return rows + [{"case": name, "precision": f"{precision}, CUDA C++", **vars(each)} for each in in_cuda]


def faults(table: Table) -> list[str]:
    """Spills, kernels without content, and programs with more shared memory than the architecture has."""
    found = []
    for name, by_architecture in table.items():
        for architecture, used in by_architecture.items():
            if used["registers"] <= _TRAP:
                found.append(f"{name} on {architecture}: the compiled kernel does nothing but trap")
            limit = SHARED_LIMIT[int(architecture.removeprefix("sm_"))]
            most = SPILLS.get(name.split()[0], 0)
            if used["local"] > most:
                found.append(f"{name} on {architecture}: {used['local']} bytes of local memory a thread, expected at most {most}")
            if used["shared"] > limit:
                found.append(f"{name} on {architecture}: {used['shared']} bytes of shared memory, expected at most {limit}")
    return found


def check(committed: dict[str, Any], versions: dict[str, str | None], table: Table, names: list[str]) -> list[str]:
    """Faults, variants that only one of the sources and the committed table has, and different numbers from the same version of a compiler.

    Rows of a compiler that is missing are not compared.
    """
    found = faults(table) + faults(committed["kernels"])
    expected = {name for name in committed["kernels"] if versions[compiler_of(name)]}
    found += [f"{name}: only one of the sources and the table has it" for name in sorted(set(names) ^ expected)]
    for name in set(table) & expected:
        if committed.get(compiler_of(name)) == versions[compiler_of(name)]:
            for architecture, used in table[name].items():
                row = committed["kernels"][name].get(architecture, {})
                if not row or any(used[what] != number for what, number in row.items()):
                    found.append(f"{name} on {architecture}: {used}, the table has {row}")
    return found


def compiler_of(name: str) -> str:
    """The compiler of a variant, ``triton`` or ``nvrtc``."""
    return "nvrtc" if name.split()[0] in (chain.FORWARD.name, chain.BACKWARD.name) else "triton"


def markdown(record: dict[str, Any]) -> str:
    """What every variant takes, and the predicted times."""
    architectures = [f"sm_{capability}" for capability in SHARED_LIMIT]
    columns = ("shared", "barriers", "global")
    headings = ["kernel", *(heading for architecture in architectures for heading in (f"{architecture} registers", *columns))]
    rows = [[name, *(cell for architecture in architectures for cell in _cells(used.get(architecture)))] for name, used in record["kernels"].items()]
    lines = [
        "# Kernels compiled ahead of time",
        "",
        f"Triton {record['triton']}{_nvrtc(record)}, written by `python -m bench.device.ahead_of_time`.",
        "Registers a thread; shared memory a program in bytes; barriers and global accesses (loads + stores) in the main loop, which is that over",
        "steps where a kernel has one. Local memory, where spilled registers go, is 0 bytes a thread unless the row says otherwise. A variant has",
        "no numbers where it is not launched.",
        "",
        _markdown.table(headings, rows, align="lr"),
        *(_times(record["predictions"]) if record["predictions"] else []),
    ]
    return "\n".join(lines) + "\n"


def _nvrtc(record: dict[str, Any]) -> str:
    return f", NVRTC {record['nvrtc']} (`chain_forward` and `chain_backward`)" if record.get("nvrtc") else ""


def _cells(used: Usage | None) -> tuple[str, ...]:
    if used is None:
        return "", "", "", ""
    local = f" (local {used['local']})" if used["local"] else ""
    in_loop = (str(used["barriers"]), f"{used['loads']} + {used['stores']}") if "barriers" in used else ("", "")
    return f"{used['registers']}{local}", str(used["shared"]), *in_loop


def _times(rows: list[dict[str, Any]]) -> list[str]:
    """Times of the launches of every case, and of the case."""
    headings = ["case", "precision", "kernel", "programs", "launches", "turns", "predicted ms"]
    cells = []
    for case, precision in dict.fromkeys((row["case"], row["precision"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["precision"]) == (case, precision)]
        times = [row["microseconds"] for row in mine]
        cells += [
            [case, precision, *(str(row[key]) for key in ("kernel", "grid", "launches", "turns")), _milliseconds(row["microseconds"])] for row in mine
        ]
        cells.append(
            [case, precision, "all", "", str(sum(row["launches"] for row in mine)), "", _milliseconds(None if None in times else sum(times))]
        )
    return [
        "",
        "## Predicted times",
        "",
        "By the static model of an H200 from the machine code for sm_90 (`bench/results/static_model.md`), not measured. Times are of the kernels",
        "alone, without the host and the small operations of PyTorch between them. There is no prediction where a loop stands in another.",
        "",
        _markdown.table(headings, cells, align="lllr"),
    ]


def _milliseconds(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds / 1000:.3g}"


if __name__ == "__main__":
    sys.exit(main())
