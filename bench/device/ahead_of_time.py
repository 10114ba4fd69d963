"""Compilation of every Triton kernel for sm_80, sm_90 and sm_100 without a GPU, and a table of registers and shared memory.

    python -m bench.device.ahead_of_time            # writes bench/results/triton_ahead_of_time.json and .md
    python -m bench.device.ahead_of_time --check    # compiles again and compares with the table
    python -m bench.device.ahead_of_time --check --first-variants    # only the first variant of each kernel
    python -m bench.device.ahead_of_time --module kde    # prints the rows of one module

Every module in kernels/ lists the variants that it launches (`compilations()`). Spilled registers go to a thread's local memory: "no spills" means
that a kernel has no local memory at all, as Triton's `cuobjdump` reads it from the machine code.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import Any

from bench import records
from ddvi_fast import _markdown

RESULTS = records.RESULTS / "triton_ahead_of_time.json"
KERNELS = records.RESULTS.parents[1] / "kernels"
# Largest shared memory of a program in bytes (CUDA C++ Programming Guide, technical specifications per compute capability).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

Usage = dict[str, int]  # registers, local, shared
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
    record = {"kind": "bench.device.ahead_of_time", "triton": triton.__version__, "kernels": table}
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
    """Registers a thread, bytes of local memory a thread, and bytes of shared memory a program."""
    import triton
    from triton.backends.compiler import GPUTarget

    wanted = listed()[job]
    options = {"num_warps": wanted.num_warps, "num_stages": wanted.num_stages}
    compiled = triton.compile(wanted.source(), target=GPUTarget("cuda", wanted.architecture, 32), options=options)
    used = resources(compiled.asm["cubin"])
    return {"registers": used["REG"], "local": used["STACK"] + used["LOCAL"], "shared": compiled.metadata.shared}


def resources(cubin: bytes) -> dict[str, int]:
    """Resources of the one function in a binary according to `cuobjdump`: REG, STACK, SHARED, LOCAL and more."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", said)}


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
                expected = committed["kernels"][name].get(architecture)
                if used != expected:
                    found.append(f"{name} on {architecture}: {used}, the table has {expected}")
    return found


def markdown(record: dict[str, Any]) -> str:
    """Registers and shared memory of every variant."""
    architectures = [f"sm_{capability}" for capability in SHARED_LIMIT]
    headings = ["kernel", *(heading for architecture in architectures for heading in (f"{architecture} registers", "shared"))]
    rows = [[name, *(cell for architecture in architectures for cell in _cells(used.get(architecture)))] for name, used in record["kernels"].items()]
    lines = [
        "# Triton kernels compiled ahead of time",
        "",
        f"Triton {record['triton']}, written by `python -m bench.device.ahead_of_time`. Registers a thread, shared memory a program in bytes.",
        "Local memory, where spilled registers would go, is 0 bytes a thread unless the row says otherwise. A variant has no numbers where it is not",
        "launched.",
        "",
        _markdown.table(headings, rows, align="lr"),
    ]
    return "\n".join(lines) + "\n"


def _cells(used: Usage | None) -> tuple[str, str]:
    if used is None:
        return "", ""
    return str(used["registers"]) + (f" (local {used['local']})" if used["local"] else ""), str(used["shared"])


if __name__ == "__main__":
    sys.exit(main())
