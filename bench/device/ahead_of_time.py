"""Compilation of every kernel for sm_80, sm_90 and sm_100 without a GPU: a table of what the machine code takes, and predicted times.

    python -m bench.device.ahead_of_time            # writes bench/results/ahead_of_time.json and .md
    python -m bench.device.ahead_of_time --all      # the same, and compiles again what has not changed
    python -m bench.device.ahead_of_time --check    # compiles again and compares with the table
    python -m bench.device.ahead_of_time --check --first-variants    # the first variant of each kernel, on one architecture unless it changed
    python -m bench.device.ahead_of_time --module kde    # prints the rows of one module

Every module in kernels/ lists the variants that it launches (`compilations()`), and so does ddvi_fast/cuda/chain.py, whose CUDA C++ is compiled by
NVRTC (`pip install nvidia-cuda-nvrtc`). Spilled registers go to a thread's local memory, whose bytes `cuobjdump` reads from the machine code;
`SPILLS` says which kernels may have any. Barriers and global accesses are those of the main loop, which is that over steps where a kernel has
one. Times are those of `bench.device.predictions` at the sizes of the benchmark's device cases.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
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
# Columns of tensor memory of a multiprocessor (PTX ISA, tcgen05).
TENSOR_LIMIT = 512

# What is counted in the main loop -> opcodes.
COUNTED = {"barriers": ("BAR",), "loads": ("LDG", "LDGSTS"), "stores": ("STG", "RED", "ATOM", "ATOMG")}

# Most bytes of local memory a thread of kernels that spill, of some variants, and of some on one architecture, as compiled by Triton 3.7.1: their
# time with the spills is in the predictions.
SPILLS = {
    "chain_fwd_kernel": 760,
    "chain_fwd_kernel D=2 C=2 H=128 bf16": 40,
    "chain_fwd_kernel D=2 C=2 H=128 bf16 on sm_80": 352,
    "chain_fwd_kernel D=2 C=2 H=128 float32": 592,
    "chain_fwd_kernel D=2 C=2 H=128 float32 on sm_80": 2080,
    "chain_fwd_kernel D=3 C=32 H=128 float32 indexed on sm_80": 2272,
    "chain_bwd_kernel": 312,
    "chain_bwd_kernel D=2 C=2 H=128 bf16": 0,
    "chain_bwd_kernel D=2 C=2 H=128 bf16 on sm_80": 32,
    "chain_bwd_kernel D=2 C=2 H=128 float32 on sm_80": 792,
    "chain_bwd_kernel D=3 C=32 H=128 float32 indexed on sm_80": 344,
    "denoiser_bwd_kernel_weights": 1168,
    "denoiser_bwd_kernel_weights D=2 C=2 H=128 bf16": 288,
    "denoiser_bwd_kernel_weights D=2 C=2 H=128 bf16, LAYER=1": 0,
    "denoiser_bwd_kernel_weights D=2 C=2 H=128 bf16, LAYER=2": 456,
    "denoiser_bwd_kernel_weights D=3 C=32 H=128 bf16 indexed by step on sm_80": 1376,
    "dense_fwd_kernel float32 dropout on sm_100": 8,
    "mmd_fwd_kernel P 784, S 6 on sm_80": 32,
    "mmd_bwd_kernel_coefficients P 784, S 6 on sm_80": 16,
    "schedule_bwd_kernel T 1000 eps on sm_100": 24,  # two steps a thread in float64
    "sleep_fwd_kernel": 1128,
    "sleep_fwd_kernel D=2 C=2 H=128 bf16": 392,
    "sleep_fwd_kernel D=2 C=2 H=128 float32 on sm_80": 2304,
    "sleep_fwd_kernel D=3 C=32 H=128 float32 indexed on sm_80": 4360,
}

_TRAP = 4  # most registers of a kernel of which the compiler left a single instruction

Usage = dict[str, int]  # registers, local, shared, tensor where there is any; in the main loop: barriers, loads, stores
Table = dict[str, dict[str, Usage]]  # by variant, then by architecture as in "sm_90"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if the check finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument(
        "--first-variants", action="store_true", help="with --check: the first variant of each kernel only, on one architecture unless it changed"
    )
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
        committed = records.read(RESULTS)
        chosen = first_variants(committed, versions) if options.first_variants else jobs()
        table = compile_all(chosen, options.processes, everywhere=not options.first_variants)
        problems = check(committed, versions, table, sorted({name for name, _ in listed()}))
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
    """Compile what the table does not have yet, predict, and write the table; also in between, so that a stopped run is continued by the next.

    Until the end the table names what it lacks. Rows of the denoiser are compiled first, and of those the ones that times are predicted from.
    """
    digests = {job: digest(listed()[job], job[1], versions) for job in jobs()}
    table: Table = {}
    for name, capability in jobs():
        if _stored(known, name, capability) == digests[name, capability]:
            table.setdefault(name, {})[f"sm_{capability}"] = known["kernels"][name][f"sm_{capability}"]
    record = {"kind": "bench.device.ahead_of_time", **versions, "predictions": known.get("predictions", [])}

    def missing() -> list[tuple[str, int]]:
        return sorted(((name, capability) for name, capability in digests if f"sm_{capability}" not in table.get(name, {})), key=_urgency)

    def write() -> None:
        done = {name: table[name] for name in dict.fromkeys(name for name, _ in jobs()) if name in table}
        kept = {name: {architecture: digests[name, int(architecture[3:])] for architecture in rows} for name, rows in done.items()}
        lacking = [f"{name} on sm_{capability}" for name, capability in missing()]
        predicted = {(row["case"], row["precision"]) for row in record["predictions"]}
        untimed = [" in ".join(job) for job in timed() if job not in predicted and predictions.calls(cases.by_name(job[0]), job[1])]
        records.write(RESULTS, {**record, "kernels": done, "digests": kept, "missing": lacking, "untimed": untimed})

    while missing():
        for name, rows in compile_all(missing()[:_AT_ONCE], processes).items():
            table.setdefault(name, {}).update(rows)
        write()
    record["predictions"] = []
    for rows in predict_all(processes):
        record["predictions"] += rows
        write()
    return table


_AT_ONCE = 12  # compilations between two writes of the table


def _urgency(job: tuple[str, int]) -> tuple[bool, int]:
    name, capability = job
    return not name.startswith(("chain_", "denoiser_", "sleep_")), (predictions.ARCHITECTURE, *SHARED_LIMIT).index(capability)


def digest(wanted: Any, capability: int, versions: dict[str, str | None]) -> str:
    """A digest of everything that the binary of a variant is made from."""
    if hasattr(wanted, "variant"):
        source, flags = compiler.folder() / wanted.variant.kernel.source, compiler.options(capability, dict(wanted.variant.macros))
        return compiler.key(source.read_text(encoding="utf-8"), compiler.headers(), flags, str(versions["nvrtc"]))[:16]
    parts = (wanted.kernel.cache_key, wanted.signature, sorted(wanted.constexprs.items(), key=str), *wanted.options.values(), capability)
    parts += (wanted.multiples,) if wanted.multiples else ()
    return hashlib.sha256(f"{versions['triton']} {parts}".encode()).hexdigest()[:16]


def jobs(module: str = "*") -> list[tuple[str, int]]:
    """Name and architecture of every variant of a module."""
    return list(listed(module))


def first_variants(known: dict[str, Any], versions: dict[str, str | None]) -> list[tuple[str, int]]:
    """The first variant of each kernel: on one architecture, another for the next kernel, and wherever it changed since a table was written."""
    first: dict[str, dict[int, str]] = {}
    for name, capability in listed():
        first.setdefault(name.split()[0], {}).setdefault(capability, name)
    chosen = []
    for number, variants in enumerate(first.values()):
        turn = list(variants)[number % len(variants)]
        for capability, name in variants.items():
            if capability == turn or _stored(known, name, capability) != digest(listed()[name, capability], capability, versions):
                chosen.append((name, capability))
    return chosen


def _stored(known: dict[str, Any], name: str, capability: int) -> str | None:
    """The digest of a row that a table has."""
    return known.get("digests", {}).get(name, {}).get(f"sm_{capability}")


def compile_all(chosen: list[tuple[str, int]], processes: int, everywhere: bool = True) -> Table:
    """Compile variants, on several processes; results stay in Triton's cache. Unless `everywhere`, main loops are read on sm_90 only."""
    compiled = partial(compile_one, everywhere=everywhere)
    if processes == 1:
        return _table(chosen, map(compiled, chosen))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return _table(chosen, pool.map(compiled, chosen))


def _table(chosen: list[tuple[str, int]], compiled: Iterable[Usage]) -> Table:
    table: Table = {}
    for (name, capability), used in zip(chosen, compiled, strict=True):
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
        found |= {(each.name, capability): each for each in _cuda_compilations() for capability in each.architectures}
    return found


def _cuda_compilations() -> list[Any]:
    """The variants in CUDA C++, none where NVRTC is missing."""
    usable, reason = nvrtc.available()
    if not usable:
        print(f"ddvi_fast/cuda: not compiled; {reason}", file=sys.stderr)
    return list(chain.compilations()) if usable else []


def compile_one(job: tuple[str, int], everywhere: bool = True) -> Usage:
    """Registers and bytes of local memory of a thread, shared and tensor memory of a program, and what stands in the main loop.

    The loop is left out on other architectures than sm_90 unless `everywhere`: disassembling takes as long as all the rest.
    """
    wanted, (_, capability) = listed()[job], job
    return usage(predictions.binary(wanted, capability), loop=everywhere or capability == predictions.ARCHITECTURE)


def usage(compiled: predictions.Binary, loop: bool = True) -> Usage:
    """What a kernel takes, and what stands in its main `loop`."""
    used, counts = sass.resources(compiled.cubin), {}
    if loop:
        program = sass.disassembled(compiled.cubin)
        counts = {what: program.count(program.main_loop, *names) for what, names in COUNTED.items()}
    memory = {"shared": compiled.shared(used["SHARED"]), **({"tensor": compiled.tensor} if compiled.tensor else {})}
    return {"registers": used["REG"], "local": used["STACK"] + used["LOCAL"], **memory, **counts}


def timed() -> list[tuple[str, str]]:
    """Device cases with times, and their precisions: all but those with an index, whose groups have any number of rows."""
    found = [case for case in cases.in_set("device") if not dict(case.shape).get("indexed")]
    return [(case.name, precision) for case in found for precision in predictions.precisions(case)]


def predict_all(processes: int) -> Iterator[list[dict[str, Any]]]:
    """Predicted times of the launches of every case, one after another."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(predict_one, timed())


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
    """Spills, kernels without content, and programs with more shared or tensor memory than the architecture has."""
    found = []
    for name, by_architecture in table.items():
        for architecture, used in by_architecture.items():
            if used["registers"] <= _TRAP:
                found.append(f"{name} on {architecture}: the compiled kernel does nothing but trap")
            limit = SHARED_LIMIT[int(architecture.removeprefix("sm_"))]
            most = most_local(name, architecture)
            if used["local"] > most:
                found.append(f"{name} on {architecture}: {used['local']} bytes of local memory a thread, expected at most {most}")
            if used["shared"] > limit:
                found.append(f"{name} on {architecture}: {used['shared']} bytes of shared memory, expected at most {limit}")
            if used.get("tensor", 0) > TENSOR_LIMIT:
                found.append(f"{name} on {architecture}: {used['tensor']} columns of tensor memory, expected at most {TENSOR_LIMIT}")
    return found


def most_local(name: str, architecture: str = "") -> int:
    """Most bytes of local memory a thread that a variant may have: its own bound in `SPILLS`, there or everywhere, else that of its kernel."""
    return next((SPILLS[key] for key in (f"{name} on {architecture}", name, name.split()[0]) if key in SPILLS), 0)


def check(committed: dict[str, Any], versions: dict[str, str | None], table: Table, names: list[str]) -> list[str]:
    """Faults, variants that only one of the sources and the committed table has, and different numbers from the same version of a compiler.

    Rows of a compiler that is missing are not compared, nor are those that the table says it lacks.
    """
    missing = set(committed.get("missing", ()))
    found = faults(table) + faults(committed["kernels"])
    expected = {name for name in committed["kernels"] if versions[compiler_of(name)]}
    expected |= {row.rpartition(" on ")[0] for row in missing if versions[compiler_of(row)]}
    found += [f"{name}: only one of the sources and the table has it" for name in sorted(set(names) ^ expected)]
    for name in set(table) & set(committed["kernels"]):
        if committed.get(compiler_of(name)) == versions[compiler_of(name)]:
            for architecture, used in table[name].items():
                row = committed["kernels"][name].get(architecture, {})
                if f"{name} on {architecture}" not in missing and (not row or any(used.get(what, number) != number for what, number in row.items())):
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
        "steps where a kernel has one. Local memory, where spilled registers go, is 0 bytes a thread unless the row says otherwise; so is tensor",
        "memory, where products sum on sm_100, of whose 512 columns a program takes some. Less common sizes are compiled for one architecture.",
        "",
        *([f"Not compiled yet: {', '.join(record['missing'])}.", ""] if record.get("missing") else []),
        _markdown.table(headings, rows, align="lr"),
        *(_times(record["predictions"]) if record["predictions"] else []),
        *(["", f"Not predicted yet: {', '.join(record['untimed'])}."] if record.get("untimed") else []),
    ]
    return "\n".join(lines) + "\n"


def _nvrtc(record: dict[str, Any]) -> str:
    return f", NVRTC {record['nvrtc']} (`chain_forward` and `chain_backward`)" if record.get("nvrtc") else ""


def _cells(used: Usage | None) -> tuple[str, ...]:
    if used is None:
        return "", "", "", ""
    local = f" (local {used['local']})" if used["local"] else ""
    in_loop = (str(used["barriers"]), f"{used['loads']} + {used['stores']}") if "barriers" in used else ("", "")
    tensor = f" (tensor {used['tensor']})" if used.get("tensor") else ""
    return f"{used['registers']}{local}", f"{used['shared']}{tensor}", *in_loop


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
