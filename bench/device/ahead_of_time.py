"""Compilation of every kernel for sm_80, sm_90 and sm_100 without a GPU: a table of what the machine code takes, and predicted times.

    python -m bench.device.ahead_of_time            # writes bench/results/ahead_of_time.json and .md
    python -m bench.device.ahead_of_time --check    # compiles again and compares with the table
    python -m bench.device.ahead_of_time --check --first-variants    # only the first variant of each kernel
    python -m bench.device.ahead_of_time --module kde    # prints the rows of one module

Every module in kernels/ lists the variants that it launches (`compilations()`). Spilled registers go to a thread's local memory: "no spills" means
that a kernel has no local memory at all, as `cuobjdump` reads it from the machine code. Barriers and global accesses are those of the largest loop,
which is that over steps where a kernel has one. Times are those of `bench.device.predictions` at the sizes of the benchmark's device cases.
"""

from __future__ import annotations

import argparse
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

RESULTS = records.RESULTS / "ahead_of_time.json"
KERNELS = records.RESULTS.parents[1] / "kernels"
# Largest shared memory of a program in bytes (CUDA C++ Programming Guide, technical specifications per compute capability).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

# What is counted in the largest loop -> opcodes.
COUNTED = {"barriers": ("BAR",), "loads": ("LDG", "LDGSTS"), "stores": ("STG", "RED", "ATOM", "ATOMG")}

Usage = dict[str, int]  # registers, local, shared; in the largest loop: barriers, loads, stores
Table = dict[str, dict[str, Usage]]  # by variant, then by architecture as in "sm_90"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if the check finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--first-variants", action="store_true", help="with --check: the first variant of each kernel only")
    parser.add_argument("--module", help="print the rows of one module of kernels/ and write nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.first_variants and not options.check:
        parser.error("--first-variants needs --check: the table has every variant")
    # Before Triton is imported, here and in the processes that compile: the interpreter has nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    table = compile_all(options.processes, options.first_variants, options.module or "*")
    record = {"kind": "bench.device.ahead_of_time", "triton": triton.__version__, "kernels": table, "predictions": []}
    if not options.module and not options.first_variants:
        record["predictions"] = predict_all(options.processes)
    if options.check:
        problems = check(records.read(RESULTS), triton.__version__, table, sorted({name for name, _ in listed()}))
    else:
        problems = faults(table)
        if options.module:
            print(markdown(record))
        else:
            records.write(RESULTS, record)
    print("\n".join(problems) or f"{len(table)} kernel variants for {len(SHARED_LIMIT)} architectures with Triton {triton.__version__}: no spills")
    return 1 if problems else 0


def compile_all(processes: int, first_variants: bool, module: str = "*") -> Table:
    """Compile for every architecture, on several processes; results stay in Triton's cache."""
    chosen, seen = [], set()
    for (name, capability), compilation in listed(module).items():
        kernel = (compilation.kernel.__name__, capability)
        if not first_variants or kernel not in seen:
            chosen.append((name, capability))
        seen.add(kernel)
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
    return found


def compile_one(job: tuple[str, int]) -> Usage:
    """Registers and bytes of local memory of a thread, bytes of shared memory of a program, and what stands in the largest loop."""
    import triton
    from triton.backends.compiler import GPUTarget

    wanted = listed()[job]
    options = {"num_warps": wanted.num_warps, "num_stages": wanted.num_stages}
    compiled = triton.compile(wanted.source(), target=GPUTarget("cuda", wanted.architecture, 32), options=options)
    return usage(compiled.asm["cubin"], compiled.metadata.shared)


def usage(cubin: bytes, shared: int) -> Usage:
    """What a binary with one function takes; `shared` is its shared memory."""
    used, program = sass.resources(cubin), sass.disassembled(cubin)
    counts = {what: program.count(program.main_loop, *names) for what, names in COUNTED.items()}
    return {"registers": used["REG"], "local": used["STACK"] + used["LOCAL"], "shared": shared, **counts}


def predict_all(processes: int) -> list[dict[str, Any]]:
    """Predicted times of the launches of every device case, one after another."""
    jobs = [(case.name, precision) for case in cases.in_set("device") for precision in predictions.precisions(case)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return [row for rows in pool.map(predict_one, jobs) for row in rows]


def predict_one(job: tuple[str, str]) -> list[dict[str, Any]]:
    """Predicted times of the launches of a case in a precision."""
    name, precision = job
    found = predictions.predicted(predictions.calls(cases.by_name(name), precision))
    return [{"case": name, "precision": precision, **vars(each)} for each in found]


def faults(table: Table) -> list[str]:
    """Spills, and programs with more shared memory than the architecture has."""
    found = []
    for name, by_architecture in table.items():
        for architecture, used in by_architecture.items():
            limit = SHARED_LIMIT[int(architecture.removeprefix("sm_"))]
            if used["local"]:
                found.append(f"{name} on {architecture}: {used['local']} bytes of local memory a thread, expected none")
            if used["shared"] > limit:
                found.append(f"{name} on {architecture}: {used['shared']} bytes of shared memory, expected at most {limit}")
    return found


def check(committed: dict[str, Any], version: str, table: Table, names: list[str]) -> list[str]:
    """Faults, variants that only one of kernels/ and the committed table has, and different numbers from the same version of Triton."""
    found = faults(table) + faults(committed["kernels"])
    found += [f"{name}: only one of kernels/ and the table has it" for name in sorted(set(names) ^ set(committed["kernels"]))]
    if committed["triton"] == version:
        for name in set(table) & set(committed["kernels"]):
            for architecture, used in table[name].items():
                expected = committed["kernels"][name].get(architecture, {})
                if not expected or any(used[what] != number for what, number in expected.items()):
                    found.append(f"{name} on {architecture}: {used}, the table has {expected}")
    return found


def markdown(record: dict[str, Any]) -> str:
    """What every variant takes, and the predicted times."""
    architectures = [f"sm_{capability}" for capability in SHARED_LIMIT]
    columns = ("shared", "barriers", "global")
    headings = ["kernel", *(heading for architecture in architectures for heading in (f"{architecture} registers", *columns))]
    rows = [[name, *(cell for architecture in architectures for cell in _cells(used.get(architecture)))] for name, used in record["kernels"].items()]
    lines = [
        "# Kernels compiled ahead of time",
        "",
        f"Triton {record['triton']}, written by `python -m bench.device.ahead_of_time`. Registers a thread; shared memory a program in bytes;",
        "barriers and global accesses (loads + stores) in the largest loop, which is that over steps where a kernel has one. Local memory, where",
        "spilled registers would go, is 0 bytes a thread unless the row says otherwise. A variant has no numbers where it is not launched.",
        "",
        _markdown.table(headings, rows, align="lr"),
        *(_times(record["predictions"]) if record["predictions"] else []),
    ]
    return "\n".join(lines) + "\n"


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
