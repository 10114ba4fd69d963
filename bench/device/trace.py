"""Trace of one turn of a kernel's main loop in the static model: when a warp issues barriers, loads and products.

python -m bench.device.trace KERNEL.cubin --warps 8
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.device import sass
from bench.device.static_model import L2_ALONE, Kernel, Multiprocessor

_MARKED = ("BAR", "STSM", "SHFL", "HMMA", "HGMMA", "WARPGROUP", "LDG", "LDGSTS")
_LONG = 18  # cycles after the instruction before


class Event(NamedTuple):
    """An instruction: cycles since the turn's begin, and since the warp's instruction before."""

    time: float
    waited: float
    instruction: sass.Instruction


def events(kernel: Kernel) -> Iterator[Event]:
    """All instructions of the first warp in one turn of the main loop, with one program on the multiprocessor."""
    program, big = kernel.program, kernel.program.main_loop
    if big is None:
        raise ValueError("kernel: expected one with a loop")
    turns = [4 if loop == big else 1 for loop in program.loops]
    trace = Multiprocessor(kernel, 1, turns, "L2", L2_ALONE).run().trace
    starts = [number for number, (_, place) in enumerate(trace) if place == big.first]
    turn = trace[starts[-2] : starts[-1]]
    before = turn[0][0]
    for time, place in turn:
        yield Event(time - turn[0][0], time - before, program.instructions[place])
        before = time


def main() -> None:
    """Print the events that matter: marked instructions, and those that waited long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--warps", type=int, required=True)
    options = parser.parse_args()
    cubin = options.cubin.read_bytes()
    used = sass.resources(cubin)
    for event in events(Kernel(sass.disassembled(cubin), options.warps, used["REG"], used["SHARED"])):
        if event.waited > _LONG or event.instruction.name in _MARKED:
            print(f"{event.time:7.0f} (+{event.waited:5.0f}) {event.instruction.opcode:28s} {event.instruction.operands[:70]}")


if __name__ == "__main__":
    main()
