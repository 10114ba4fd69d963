"""Compiles every Triton kernel for sm_80, sm_90 and sm_100, without a GPU, and keeps a table of what each takes on the chip.

    python bench/ahead_of_time.py            # writes bench/results/triton_ahead_of_time.json and .md
    python bench/ahead_of_time.py --check    # compiles again and compares with the table
    python bench/ahead_of_time.py --check --first-variants    # the first variant of each kernel only
    python bench/ahead_of_time.py --module kde    # prints the rows of one module

Every module in kernels/ lists its kernels as they are launched (`compilations()`). A stack frame is where spilled registers go, so
"no spills" is measured as no byte of local memory, which is stricter: Triton's `cuobjdump` reads it from the finished machine code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "bench" / "results" / "triton_ahead_of_time.json"
# Shared memory that one program may have, in bytes (CUDA C++ Programming Guide, technical specifications per compute capability).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

Figures = dict[str, int]  # registers, local, shared
Table = dict[str, dict[str, Figures]]  # by variant, then by architecture as in "sm_90"


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 where the check finds something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--first-variants", action="store_true", help="with --check: the first variant of each kernel only")
    parser.add_argument("--module", help="print the rows of one module of kernels/ and write nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.first_variants and not options.check:
        parser.error("--first-variants goes with --check: a table has every variant")
    # Before Triton is imported, here and in the processes that compile: the interpreter has nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path.insert(0, str(PROJECT))
    import triton

    table = compile_all(options.processes, options.first_variants, options.module or "*")
    if options.module:
        problems = faults(table)
        print(markdown(triton.__version__, table))
    elif options.check:
        problems = check(json.loads(RESULTS.read_text()), triton.__version__, table, sorted({name for name, _ in listed()}))
    else:
        problems = faults(table)
        RESULTS.write_text(json.dumps({"triton": triton.__version__, "kernels": table}, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(markdown(triton.__version__, table))
    print("\n".join(problems) or f"{len(table)} kernel variants for {len(SHARED_LIMIT)} architectures with Triton {triton.__version__}: no spills")
    return 1 if problems else 0


def compile_all(processes: int, first_variants: bool, module: str = "*") -> Table:
    """Compile for every architecture, on several processes; results stay in Triton's cache."""
    chosen, seen = [], set()
    for (name, capability), compilation in listed(module).items():
        kernel = (compilation.kernel.__module__, compilation.kernel.__name__, capability)
        if not first_variants or kernel not in seen:
            chosen.append((name, capability))
        seen.add(kernel)
    table: Table = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for (name, capability), figures in zip(chosen, pool.map(compile_one, chosen), strict=True):
            table.setdefault(name, {})[f"sm_{capability}"] = figures
    return table


@lru_cache
def listed(module: str = "*") -> dict[tuple[str, int], Any]:
    """Every `Compilation` of the modules in kernels/ that match, by name and architecture: one name may stand for another variant on each."""
    found: dict[tuple[str, int], Any] = {}
    for file in sorted((PROJECT / "kernels").glob(f"{module}.py")):
        kernels = importlib.import_module(f"ddvi_fast.kernels.{file.stem}")
        for compilation in getattr(kernels, "compilations", list)():
            for capability in compilation.architectures:
                key = (f"{file.stem} {compilation.name}", capability)
                if key in found:
                    raise ValueError(f"kernels/{file.name}: two variants for sm_{capability} are called {compilation.name}")
                found[key] = compilation
    return found


def compile_one(job: tuple[str, int]) -> Figures:
    """Registers a thread, bytes of local memory a thread, and bytes of shared memory a program."""
    import triton
    from triton.backends.compiler import GPUTarget

    name, capability = job
    wanted = listed(name.split()[0])[job]
    options = {"num_warps": wanted.num_warps, "num_stages": wanted.num_stages}
    compiled = triton.compile(wanted.source(), target=GPUTarget("cuda", capability, 32), options=options)
    used = resources(compiled.asm["cubin"])
    return {"registers": used["REG"], "local": used["STACK"] + used["LOCAL"], "shared": compiled.metadata.shared}


def resources(cubin: bytes) -> dict[str, int]:
    """What `cuobjdump` says of the one function in a binary: REG, STACK, SHARED, LOCAL and more."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", said)}


def faults(table: Table) -> list[str]:
    """Spills, and more shared memory than there is."""
    found = []
    for name, by_architecture in table.items():
        for architecture, figures in by_architecture.items():
            limit = SHARED_LIMIT[int(architecture.removeprefix("sm_"))]
            if figures["local"]:
                found.append(f"{name} on {architecture}: {figures['local']} bytes of local memory a thread, expected none")
            if figures["shared"] > limit:
                found.append(f"{name} on {architecture}: {figures['shared']} bytes of shared memory, expected at most {limit}")
    return found


def check(committed: dict[str, Any], version: str, table: Table, names: list[str]) -> list[str]:
    """Faults, variants that the committed table lacks or has too many, and other figures from the same version of Triton."""
    found = faults(table) + faults(committed["kernels"])
    found += [f"{name}: only one of kernels/ and the table has it" for name in sorted(set(names) ^ set(committed["kernels"]))]
    if committed["triton"] == version:
        for name in set(table) & set(committed["kernels"]):
            for architecture, figures in table[name].items():
                expected = committed["kernels"][name].get(architecture)
                if figures != expected:
                    found.append(f"{name} on {architecture}: {figures}, the table has {expected}")
    return found


def markdown(version: str, table: Table) -> str:
    """The table for people."""
    architectures = [f"sm_{capability}" for capability in SHARED_LIMIT]
    heads = " | ".join(f"{architecture} registers | shared" for architecture in architectures)
    lines = [
        "# Triton kernels compiled ahead of time",
        "",
        f"Triton {version}, written by `python bench/ahead_of_time.py`. Registers a thread, shared memory a program in bytes; local memory, where",
        "spilled registers would go, is 0 bytes a thread unless the row says otherwise; a variant has no figures where it is not launched.",
        "",
        f"| kernel | {heads} |",
        "| --- |" + " ---: |" * (2 * len(architectures)),
    ]
    for name, by_architecture in table.items():
        cells = []
        for architecture in architectures:
            figures = by_architecture.get(architecture)
            if figures is None:
                cells += ["", ""]
                continue
            cells += [str(figures["registers"]) + (f" (local {figures['local']})" if figures["local"] else ""), str(figures["shared"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
