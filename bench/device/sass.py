"""Machine code of NVIDIA GPUs (SASS): instructions with their control codes, loops, and counts of what stands in a loop.

`disassembled` runs `cuobjdump`, which Triton's wheel contains; so does `pip install nvidia-cuda-cuobjdump`. Instructions take 128 bits on
sm_80, sm_90 and sm_100; the control codes are the bits from 105 on: stall cycles, yield, the scoreboards that are set, and those that are
waited for.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

NO_SCOREBOARD = 7
PRODUCTS = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA")  # of tensor cores
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\*\s*0x[0-9a-f]{16}\s*\*/")
_UPPER_HALF = re.compile(r"^\s+/\*\s*0x([0-9a-f]{16})\s*\*/")
_WIDTHS = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}

MISSING = "cuobjdump: not found; install Triton or run `pip install nvidia-cuda-cuobjdump`"


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        address: Place in the function in bytes.
        predicate: Predicate with its ``@``, or an empty text.
        opcode, operands: For example ``HMMA.16816.F32.BF16`` and its operands as text.
        stall: Cycles before the warp's next instruction.
        write, read: Scoreboards that are set until the result is there, or the operands are read; 7 for none.
        wait: Mask of the six scoreboards that are waited for.
        target: Address to which a branch goes, or None.
    """

    address: int
    predicate: str
    opcode: str
    operands: str
    stall: int
    write: int
    read: int
    wait: int
    target: int | None

    @cached_property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """Bytes that each thread of a memory instruction moves."""
        return next((_WIDTHS[part] for part in self.opcode.split(".")[1:] if part in _WIDTHS), 4)


@dataclass(frozen=True)
class Loop:
    """First and last instruction of a loop, as places in the program."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Program:
    """Instructions of one function."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def place(self) -> dict[int, int]:
        """Place of each address."""
        return {instruction.address: place for place, instruction in enumerate(self.instructions)}

    @cached_property
    def loops(self) -> list[Loop]:
        """The loops in the order of their backward branches; the trap after the end, which branches to itself, is none."""
        found = []
        for place, each in enumerate(self.instructions):
            if each.name == "BRA" and each.target is not None and each.target < each.address and each.target in self.place:
                found.append(Loop(self.place[each.target], place))
        return found

    @cached_property
    def main_loop(self) -> Loop | None:
        """The innermost of the loops with most products of tensor cores; the longest loop if there are no products."""
        if not any(each.name in PRODUCTS for each in self.instructions):
            return max(self.loops, key=len, default=None)
        return max(self.loops, key=lambda loop: (self.count(loop, *PRODUCTS), -len(loop)), default=None)

    def body(self, loop: Loop | None) -> tuple[Instruction, ...]:
        """Instructions of a loop, or all of them if there is none."""
        return self.instructions if loop is None else self.instructions[loop.first : loop.last + 1]

    def count(self, loop: Loop | None, *names: str) -> int:
        """Number of instructions of a loop whose opcode, without modifiers, is among `names`."""
        return sum(each.name in names for each in self.body(loop))


def parse(text: str) -> Program:
    """Read what `cuobjdump -sass` prints of one function."""
    return Program(tuple(_instructions(text.splitlines())))


def _instructions(lines: Iterable[str]) -> Iterator[Instruction]:
    started = None
    for line in lines:
        found = _INSTRUCTION.match(line)
        if found:
            started = int(found[1], 16), found[2].strip()
            continue
        upper = _UPPER_HALF.match(line)
        if upper and started:
            yield _instruction(*started, int(upper[1], 16) >> 41)
            started = None


def _instruction(address: int, text: str, control: int) -> Instruction:
    predicate, rest = text.split(None, 1) if text.startswith("@") else ("", text)
    opcode, _, operands = rest.partition(" ")
    return Instruction(
        address, predicate, opcode, operands.strip(), stall=control & 15, write=control >> 5 & 7, read=control >> 8 & 7, wait=control >> 11 & 63,
        target=_target(opcode, operands),
    )  # fmt: skip


def _target(opcode: str, operands: str) -> int | None:
    places = re.findall(r"0x([0-9a-f]+)", operands) if opcode.split(".")[0] in ("BRA", "BSSY", "WARPSYNC") else []
    return int(places[-1], 16) if places else None


def condensed(program: Program) -> str:
    """A short text with all that the static model reads: one line an instruction, operands only where they matter."""
    lines = []
    for each in program.instructions:
        operands = each.operands if each.name in ("HGMMA", "DEPBAR") else ""
        target = "" if each.target is None else program.place.get(each.target, "")
        lines.append(f"{each.predicate} {each.opcode} {each.stall} {each.write} {each.read} {each.wait} {target} {operands}")
    return "\n".join(lines)


def expanded(text: str) -> Program:
    """The program of a condensed text."""
    found = []
    for place, line in enumerate(text.splitlines()):
        predicate, opcode, stall, write, read, wait, target, operands = line.split(" ", 7)
        goal = 16 * int(target) if target else None
        found.append(Instruction(16 * place, predicate, opcode, operands, int(stall), int(write), int(read), int(wait), goal))
    return Program(tuple(found))


@lru_cache
def cuobjdump() -> str | None:
    """Path of `cuobjdump`: Triton's, that of NVIDIA's wheel, or the one on the PATH; None if there is none."""
    for package, below in (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin"), ("nvidia", "cuda_cuobjdump/bin")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / below / "cuobjdump"
            if os.access(path, os.X_OK):
                return str(path)
    return shutil.which("cuobjdump")


def disassembled(cubin: bytes) -> Program:
    """The program of a binary with one function."""
    return parse(_dumped(cubin, "-sass"))


def resources(cubin: bytes) -> dict[str, int]:
    """Resources of the one function in a binary: REG, STACK, SHARED, LOCAL and more."""
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", _dumped(cubin, "-res-usage"))}


def _dumped(cubin: bytes, option: str) -> str:
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError(MISSING)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
