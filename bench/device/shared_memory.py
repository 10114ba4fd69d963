"""Shared memory of every kernel around the denoiser by its sizes, from Triton's passes, without the machine code that takes minutes.

    python -m bench.device.shared_memory    # compiles the sizes of bench/references/shared_memory.json again and writes it

`ddvi_fast.kernels.shared_memory` refuses what does not fit by formulas; tests compare these with the table, and the table with what compiles.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from bench import records

REFERENCES = records.RESULTS.parent / "references" / "shared_memory.json"
KERNELS = {"chain_fwd_kernel": "chain", "chain_bwd_kernel": "chain", "sleep_fwd_kernel": "sleep", "denoiser_bwd_kernel_weights": "weights"}
Row = list[Any]  # architecture, D, C, H, precision, kernel, rows of a tile, whether it keeps the hidden matrices, bytes


def main(arguments: list[str] | None = None) -> None:
    """Write the table of the sizes that it has."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: the interpreter has nothing to compile
    sizes = list(dict.fromkeys(tuple(row[:5]) for row in table()))
    write([row for each in sizes for row in measured(*each)])


def table() -> list[Row]:
    """The committed rows."""
    return json.loads(REFERENCES.read_text(encoding="utf-8"))["rows"]


def write(rows: list[Row]) -> None:
    """Write the table, one row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    columns = '["architecture", "latent", "context", "hidden", "precision", "kernel", "tile rows", "keeps matrices", "bytes"]'
    REFERENCES.write_text(f'{{"columns": {columns},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def measured(architecture: int, latent: int, context: int, hidden: int, precision: str, only: str = "") -> Iterator[Row]:
    """A row for each kernel, of a learned chain of many rows with an index and of its regression; C is at least 1."""
    seen = set()
    for compilation in _compilations(architecture, latent, context, hidden, precision):
        name, constants = compilation.kernel.__name__, compilation.constexprs
        layer = f" {constants['LAYER']}" if "LAYER" in constants else ""
        if name not in KERNELS or only not in name or constants.get("M") or constants.get("N") or name + layer in seen:
            continue
        seen.add(name + layer)
        yield [architecture, latent, context, hidden, precision, name + layer, constants["BN"], constants["KEEP"], shared(compilation)]


def _compilations(architecture: int, latent: int, context: int, hidden: int, precision: str) -> Iterator[Any]:
    import torch

    from ddvi_fast import _operands
    from ddvi_fast.kernels import chain, chain_options, common, sleep

    sizes = chain_options.Sizes(10, 1 << 16, latent, context, hidden, 40, True)
    start, *tensors, state = sizes.meta_tensors()
    operands = _operands.ChainOperands(start, *tensors, None, *sizes.meta_index(), state, 0, sizes.rows, True, precision)
    signs = start.new_empty((sizes.steps, sizes.rows, 4, hidden // 32), dtype=torch.int32)
    kept = start.new_empty((sizes.steps + 1, *start.shape)), signs, start.new_empty((sizes.steps, *start.shape))
    needed = _operands.Differentiable(*[True] * 8, False)
    calls = [(chain.forward, operands, True, True, True), (chain.backward, operands, *kept, None, start.new_empty(sizes.rows), None, needed)]
    steps = state.new_empty(sizes.rows)
    pairs = _operands.SleepOperands(start, steps, *tensors, None, *sizes.meta_index(), state, 0, sizes.rows, "huber", True, precision)
    calls.append((sleep.forward, pairs, _operands.OF_WEIGHTS | _operands.OF_CONTEXT | _operands.OF_TABLE))
    for call in calls:
        yield from (launched.compilation for launched in common.launches("", architecture, *call))


def shared(compilation: Any) -> int:
    """Bytes of shared memory of a program, from the pass that allocates it."""
    from triton._C.libtriton import ir, nvidia, passes
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend, get_ptx_version_from_options

    target, source = GPUTarget("cuda", compilation.architecture, 32), compilation.source()
    backend, context = CUDABackend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({**compilation.options, **source.parse_options()})
    module = source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    for stage in (backend.make_ttir, backend.make_ttgir):
        module = stage(module, {}, options, compilation.architecture)
    manager = ir.pass_manager(module.context)
    passes.ttgpuir.add_combine_tensor_select_and_if(manager)
    passes.ttgpuir.add_allocate_warp_groups(manager)
    passes.convert.add_scf_to_cf(manager)
    passes.gluon.add_inliner(manager)
    version = get_ptx_version_from_options(options, compilation.architecture)
    nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, compilation.architecture, version)
    manager.run(module, "shared memory")
    return module.get_int_attr("ttg.shared")


if __name__ == "__main__":
    main()
