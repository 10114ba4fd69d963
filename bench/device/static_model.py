"""Time of a kernel on an H200 from its machine code: the warps of one multiprocessor are stepped through the instructions.

    python -m bench.device.static_model KERNEL.cubin --warps 4 --grid 1024 --turns 40

`--turns` gives the number of turns of each loop in the order of the loops' ends; a loop that is left out has one turn.

Modeled are issue in order by four schedulers, one instruction a cycle each; stall cycles, scoreboards and wait masks of the control codes; pipes with
their widths; barriers; wgmma as asynchronous work of the tensor cores; latencies of memory by where the data are expected, and a share of the L2
cache's bandwidth. Not modeled are cache misses beyond `memory`, bank conflicts, divergence, the instruction cache and the launch itself.
"""

from __future__ import annotations

import argparse
import heapq
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.device import sass
from bench.device.sass import NO_SCOREBOARD, Instruction, Program

# One set of constants for all kernels, calibrated on bench/results/device-nvidia-h200.json.
CLOCK = 1.755e9  # Hz under load
MULTIPROCESSORS, SCHEDULERS = 132, 4
REGISTERS, SHARED_BYTES, RESERVED_BYTES, MOST_WARPS, MOST_PROGRAMS = 65_536, 233_472, 1024, 64, 32
L2_SHARE, L2_ALONE = 30.0, 64.0  # bytes a cycle for a multiprocessor: with all of them at work, and alone
MEMORY = {"L1": 38, "L2": 290, "HBM": 720}  # latency of a global load in cycles
BARRIER, BRANCH, PRODUCT = 22, 10, 40  # cycles after the last warp's arrival, after a branch, and after the last wgmma
QUEUE = 256  # cycles of wgmma that wait in front of the tensor cores
OPERAND_READ = 10  # cycles until a memory instruction has read its operands
_MOST_GROUPS = 63  # of asynchronous copies that a warp has under way
ALU_RESULT = 12  # cycles until a scoreboard without a pipe is released

# Opcodes -> (pipe, cycles that it is taken, latency of the result). `lsu` is shared by the schedulers, every other pipe is one of each.
_GROUPS = (
    ("FFMA FMUL FADD FSWZADD", ("fma", 1, 4)),
    ("IMAD HFMA2 HADD2 HMUL2 HSET2 HSETP2 HMNMX2", ("fma", 1, 5)),
    ("DADD DMUL DFMA DSETP", ("fp64", 2, 48)),
    ("MUFU", ("xu", 8, 22)),
    ("F2I I2F F2F FRND POPC FLO BREV", ("xu", 8, 24)),
    ("SHFL", ("lsu", 1, 24)),
    ("LDL STL", ("lsu", 2, MEMORY["L1"])),
    ("LDC ULDC", ("lsu", 1, 40)),
    ("S2R S2UR CS2R", ("lsu", 1, 50)),
    ("MEMBAR FENCE", ("lsu", 4, 36)),
    ("VOTE VOTEU R2UR REDUX SYNCS UTMALDG ELECT", ("alu", 2, 14)),
    ("BRA NOP BAR EXIT WARPGROUP DEPBAR LDGDEPBAR BSSY BSYNC WARPSYNC RET CALL YIELD NANOSLEEP", (None, 0, 0)),
)
_TIMINGS = {name: timing for names, timing in _GROUPS for name in names.split()}
_SHARED, _OWN = ("lsu", "l2"), ("fma", "fp64", "xu", "alu", "uniform", "tensor")  # pipes of all schedulers together, and of each of them
_L2 = _SHARED.index("l2")
_HMMA = {"16816": 8, "1688": 4, "1684": 4}  # cycles of mma.sync by its shape; twice as many for 1688 of tf32


class Timing(NamedTuple):
    """Pipe of an instruction, cycles that the pipe is taken, and latency of the result (None for a load: it depends on the place of the data)."""

    pipe: str | None
    cycles: float
    latency: float | None


def timing(instruction: Instruction) -> Timing:
    """How long an instruction takes which pipe."""
    name, opcode, words = instruction.name, instruction.opcode, instruction.width / 4
    if name == "HGMMA":
        return _warp_group_product(instruction)
    if name == "HMMA":
        shape = opcode.split(".")[1]
        return Timing("tensor", 8 if ".TF32" in opcode else _HMMA.get(shape, 8), 24)
    if name == "IMAD" and (".WIDE" in opcode or ".HI" in opcode):
        return Timing("fma", 2, 5)
    if name == "LDS":
        return Timing("lsu", max(1, words), 29 + words)
    if name == "LDSM":
        return Timing("lsu", 4 if opcode.endswith(".4") else 2, 33)
    if name in ("STS", "STSM"):
        return Timing("lsu", 4 if name == "STSM" else max(1, words), 24)
    if name in ("LDG", "LDGSTS"):
        return Timing("lsu", max(2, words), None)
    if name in ("STG", "RED", "ATOMG", "ATOM"):
        return Timing("lsu", max(2, words), 40)
    return Timing(*_TIMINGS.get(name, ("uniform", 2, 8) if name.startswith("U") else ("alu", 2, 6)))


def _warp_group_product(instruction: Instruction) -> Timing:
    """wgmma of 64 rows: 2048 fp16 products a cycle and multiprocessor, half as many of tf32; slower if the left factor is in shared memory too."""
    columns, inner = map(int, re.match(r"HGMMA\.64x(\d+)x(\d+)", instruction.opcode).groups())  # type: ignore[union-attr]
    tf32 = ".TF32" in instruction.opcode
    cycles = 64 * columns * inner / (1024 if tf32 else 2048)
    if "gdesc" in instruction.operands.split(",")[1]:
        cycles = max(cycles, 64 * inner * (4 if tf32 else 2) / 128)
    return Timing("tensor", max(cycles, 16), PRODUCT)


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Args:
        program: Its instructions.
        warps: Warps of a program (a block of threads).
        registers: Registers of a thread.
        shared: Bytes of shared memory of a program.
    """

    program: Program
    warps: int
    registers: int
    shared: int

    @property
    def resident(self) -> int:
        """Most programs that one multiprocessor holds at a time."""
        each = (self.registers * 32 + 255) // 256 * 256 * self.warps
        most = min(REGISTERS // each, SHARED_BYTES // (self.shared + RESERVED_BYTES), MOST_WARPS // self.warps, MOST_PROGRAMS)
        return max(1, most)


class _Step(NamedTuple):
    """What the simulation needs of an instruction, computed once."""

    instruction: Instruction
    timing: Timing
    jump: int | None  # where the instruction branches to, if it does
    turns: int  # of the loop that ends here, else 0
    waits: tuple[int, ...]  # scoreboards
    pending: int  # groups of asynchronous copies that may still be under way
    traffic: int  # bytes of a warp's global access
    name: str  # of the instruction
    pipes: tuple[int | None, ...]  # the place of each scheduler's pipe, all of them None without one
    stall: int  # cycles until the warp's next instruction
    ahead: int  # cycles before the pipe is free at which the instruction can be issued


def _steps(program: Program, turns: Sequence[int]) -> list[_Step]:
    ends = {loop.last: turns[number] for number, loop in enumerate(program.loops)}
    found = []
    for place, each in enumerate(program.instructions):
        waits = tuple(board for board in range(6) if each.wait >> board & 1)
        traffic = 32 * each.width if each.name in ("LDG", "LDGSTS", "STG") else 0
        taken = timing(each)
        pipes = tuple(_place(taken.pipe, scheduler) for scheduler in range(SCHEDULERS))
        ahead = QUEUE if each.name == "HGMMA" else 0
        turned, stall = ends.get(place, 0), max(1, each.stall)
        found.append(_Step(each, taken, _jump(program, place), turned, waits, _pending(each), traffic, each.name, pipes, stall, ahead))
    return found


def _place(pipe: str | None, scheduler: int) -> int | None:
    """The place of a scheduler's pipe among all of them; those that the schedulers share come first."""
    if pipe is None or pipe in _SHARED:
        return None if pipe is None else _SHARED.index(pipe)
    return len(_SHARED) + SCHEDULERS * _OWN.index(pipe) + scheduler


def _pending(instruction: Instruction) -> int:
    """The number of groups of asynchronous copies for which a `DEPBAR.LE SB0, number` does not wait."""
    number = re.search(r", 0x([0-9a-f]+)", instruction.operands) if instruction.name == "DEPBAR" else None
    return int(number[1], 16) if number else 0


def _jump(program: Program, place: int) -> int | None:
    """The branch's target if the model takes the branch.

    It takes backward and unconditional branches, and a conditional one if the instruction before its target is an unconditional branch: that is
    `if p goto body; goto end` in front of a loop, whose body is run. It takes no conditional branch past the main loop, which is for no turns.
    """
    each = program.instructions[place]
    goal = program.place.get(each.target) if each.name == "BRA" and each.target is not None else None
    if goal is None or goal == place:
        return None
    if goal < place or not each.predicate:
        return goal
    before, main = program.instructions[goal - 1], program.main_loop
    past = main is not None and place < main.first and main.last < goal
    return goal if before.name == "BRA" and not before.predicate and not past else None


@dataclass(slots=True)
class _Warp:
    number: int
    scheduler: int
    program: int
    place: int = 0
    ready: float = 0.0
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)
    turns: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    products: float = 0.0  # when the last wgmma is done
    copies: float = 0.0  # when the asynchronous copies are done that belong to no group yet
    groups: list[float] = field(default_factory=list)  # when each group of asynchronous copies is done


class Multiprocessor:
    """Simulation of `programs` programs of a kernel on one multiprocessor.

    Args:
        kernel: The kernel.
        programs: Number of programs that run at the same time.
        turns: Turns of each loop.
        memory: Where global loads find their data: ``L1``, ``L2`` or ``HBM``.
        share: Bytes a cycle of the L2 cache's bandwidth.
    """

    def __init__(self, kernel: Kernel, programs: int, turns: Sequence[int], memory: str, share: float) -> None:
        self.steps, self.warps, self.latency, self.share = _steps(kernel.program, turns), kernel.warps, MEMORY[memory], share
        self.free = [0.0] * (len(_SHARED) + SCHEDULERS * len(_OWN))  # when each pipe is free
        self.next_issue = [0.0] * SCHEDULERS
        self.busy: dict[str, float] = defaultdict(float)  # cycles of each pipe
        self.issued, self.cycles = 0, 0.0
        self.waiting: dict[int, list[_Warp]] = defaultdict(list)  # at a barrier
        self.running = [kernel.warps] * programs
        self.trace: list[tuple[float, int]] = []  # issue times and places of the first warp
        numbers = range(programs * kernel.warps)
        self.queue = [(0.0, n, _Warp(n, n % SCHEDULERS, n // kernel.warps)) for n in numbers]

    def run(self) -> Multiprocessor:
        """Issue instructions until every warp has ended."""
        queue = self.queue
        while queue:
            known, number, warp = queue[0]
            time = self._earliest(warp)
            if time > known:  # others may come before it
                heapq.heapreplace(queue, (time, number, warp))
                continue
            heapq.heappop(queue)
            self.cycles = time
            self._issue(warp, time)
        return self

    def _earliest(self, warp: _Warp) -> float:
        """The first time at which the warp's next instruction can be issued, as far as is known now; it never becomes earlier."""
        # Comparisons in place of calls of `max`: this runs millions of times.
        step, scheduler, time = self.steps[warp.place], warp.scheduler, warp.ready
        if self.next_issue[scheduler] > time:
            time = self.next_issue[scheduler]
        for board in step.waits:
            if warp.boards[board] > time:
                time = warp.boards[board]
        pipe = step.pipes[scheduler]
        if pipe is not None:
            free = self.free[pipe] - step.ahead
            return free if free > time else time
        if step.name == "WARPGROUP" and "DEPBAR" in step.instruction.opcode:
            return max(time, warp.products)
        return max((time, *warp.groups[: len(warp.groups) - step.pending])) if step.name == "DEPBAR" else time

    def _issue(self, warp: _Warp, time: float) -> None:
        step = self.steps[warp.place]
        each, name = step.instruction, step.name
        if warp.number == 0:
            self.trace.append((time, warp.place))
        self.issued += 1
        self.next_issue[warp.scheduler] = time + 1
        warp.ready = time + step.stall
        if step.timing.pipe is not None:
            self._occupy(step, warp, time)
        elif each.write != NO_SCOREBOARD:
            warp.boards[each.write] = max(warp.boards[each.write], time + ALU_RESULT)
        if name == "LDGDEPBAR":
            warp.groups = [*warp.groups[-_MOST_GROUPS:], warp.copies]
        if name == "BAR":
            warp.place += 1
            self.waiting[warp.program].append(warp)
            self._release(warp.program, time)
        elif (name == "EXIT" and not each.predicate) or not self._advance(warp, step, time):
            self.running[warp.program] -= 1
            self._release(warp.program, time)
        else:
            heapq.heappush(self.queue, (warp.ready, warp.number, warp))

    def _occupy(self, step: _Step, warp: _Warp, time: float) -> None:
        """Take the pipe, and set the scoreboards."""
        each, (pipe, cycles, latency), key = step.instruction, step.timing, step.pipes[warp.scheduler]
        assert pipe is not None and key is not None
        start = self.free[key] if self.free[key] > time else time
        self.free[key] = end = start + cycles
        self.busy[pipe] += cycles
        if step.name == "HGMMA":
            warp.products = max(warp.products, end + (latency or 0))
            return
        if step.traffic:
            self.free[_L2] = max(time, self.free[_L2]) + step.traffic / self.share
            self.busy["l2"] += step.traffic / self.share
        if latency is None:
            latency = self.latency + self.free[_L2] - time
            if step.name == "LDGSTS":
                warp.copies = max(warp.copies, time + latency)
        if each.write != NO_SCOREBOARD:
            warp.boards[each.write] = max(warp.boards[each.write], end + latency)
        if each.read != NO_SCOREBOARD:
            warp.boards[each.read] = max(warp.boards[each.read], end + OPERAND_READ)

    def _release(self, program: int, time: float) -> None:
        """Let the warps of a barrier go if all of the program's warps are there."""
        arrived = self.waiting[program]
        if arrived and len(arrived) == self.running[program]:
            for warp in arrived:
                warp.ready = max(warp.ready, time + BARRIER)
                heapq.heappush(self.queue, (warp.ready, warp.number, warp))
            arrived.clear()

    def _advance(self, warp: _Warp, step: _Step, time: float) -> bool:
        """Go to the next instruction; False at the end of the program."""
        place, jump = warp.place, step.jump
        if step.turns:
            warp.turns[place] += 1
            if warp.turns[place] == step.turns:
                warp.turns[place], jump = 0, None
        if jump is None:
            warp.place += 1
        else:
            warp.place, warp.ready = jump, time + max(step.instruction.stall if step.turns else 0, BRANCH)
        return warp.place < len(self.steps)


@dataclass(frozen=True)
class Prediction:
    """Time of one launch.

    Args:
        seconds, cycles: Time of the launch.
        turn: Cycles of a turn of the main loop, or of the whole program.
        programs: Programs that one multiprocessor holds at a time.
        waves: How many times it is filled.
        busy: Share of a turn that each pipe is busy.
        issued: Instructions that the multiprocessor issues in a turn.
    """

    seconds: float
    cycles: float
    turn: float
    programs: int
    waves: int
    busy: dict[str, float]
    issued: float


def predict(kernel: Kernel, grid: int, turns: Sequence[int] = (), memory: str = "L2", clock: float = CLOCK) -> Prediction:
    """Predict the time of a launch of `grid` programs.

    Args:
        kernel: The kernel.
        grid: Number of programs (int).
        turns: Turns of each loop in the order of the loops' ends; 1 for those left out.
        memory: Where global loads find their data: ``L1``, ``L2`` or ``HBM`` (default ``L2``).
        clock: Clock rate in Hz (float, default 1.755e9).
    """
    loops = kernel.program.loops
    turns = [*turns, *[1] * (len(loops) - len(turns))][: len(loops)]
    resident = min(kernel.resident, -(-grid // MULTIPROCESSORS))
    share = max(L2_SHARE, min(L2_ALONE, L2_SHARE * MULTIPROCESSORS / grid))
    full = _run(kernel, resident, turns, memory, share)
    waves = -(-grid // (MULTIPROCESSORS * resident))
    last = -(-(grid - (waves - 1) * MULTIPROCESSORS * resident) // MULTIPROCESSORS)
    cycles = (waves - 1) * full.cycles + (full if last == resident else _run(kernel, last, turns, memory, share)).cycles
    return Prediction(cycles / clock, cycles, full.turn, resident, waves, full.busy, full.issued)


class _Run(NamedTuple):
    cycles: float
    turn: float
    busy: dict[str, float]
    issued: float


def _run(kernel: Kernel, programs: int, turns: Sequence[int], memory: str, share: float) -> _Run:
    """Simulate programs to their end; of a main loop with many turns, three and five are simulated and the rest is extrapolated."""
    big = kernel.program.main_loop
    number = kernel.program.loops.index(big) if big else 0

    def simulated(count: int) -> Multiprocessor:
        return Multiprocessor(kernel, programs, [*turns[:number], count, *turns[number + 1 :]], memory, share).run()

    if big is None or turns[number] <= 4:
        done = simulated(turns[number] if big else 1)
        return _Run(done.cycles, done.cycles, _shares(done.busy, done.cycles), done.issued)
    three, five = simulated(3), simulated(5)
    if three.cycles == five.cycles:  # the path does not go through that loop
        return _Run(three.cycles, three.cycles, _shares(three.busy, three.cycles), three.issued)
    turn = (five.cycles - three.cycles) / 2
    busy = {pipe: (five.busy[pipe] - three.busy[pipe]) / 2 for pipe in five.busy}
    return _Run(three.cycles + (turns[number] - 3) * turn, turn, _shares(busy, turn), (five.issued - three.issued) / 2)


def _shares(busy: dict[str, float], cycles: float) -> dict[str, float]:
    return {pipe: spent / cycles / (1 if pipe in ("lsu", "l2") else SCHEDULERS) for pipe, spent in busy.items()}


def main() -> None:
    """Print the prediction for one binary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--warps", type=int, required=True)
    parser.add_argument("--grid", type=int, required=True)
    parser.add_argument("--turns", type=int, nargs="*", default=[])
    parser.add_argument("--dynamic-shared", type=int, default=0, help="bytes of shared memory that the launch asks for, as Triton's do")
    parser.add_argument("--memory", choices=MEMORY, default="L2")
    options = parser.parse_args()
    cubin = options.cubin.read_bytes()
    used = sass.resources(cubin)
    kernel = Kernel(sass.disassembled(cubin), options.warps, used["REG"], used["SHARED"] + options.dynamic_shared)
    found = predict(kernel, options.grid, options.turns, options.memory)
    print(
        f"{found.seconds * 1e6:.1f} us, {found.waves} x {found.programs} programs, {found.turn:.0f} cycles and {found.issued:.0f} instructions a turn"
    )
    print(", ".join(f"{pipe} {share:.0%} busy" for pipe, share in sorted(found.busy.items(), key=lambda item: -item[1])))


if __name__ == "__main__":
    main()
