"""Tests of the model that predicts a kernel's time from its machine code."""

from __future__ import annotations

import dataclasses

import pytest

from bench import records
from bench.device import calibration, sass, trace
from bench.device.static_model import BARRIER, MULTIPROCESSORS, Kernel, Multiprocessor, predict, timing

CASES = calibration.cases()
SLOW = {"chain backward, float32, N = 128", "chain forward, float32, D = 16, N = 65,536", "chain forward, float32, D = 2, N = 65,536"}


def listing(*lines: str) -> sass.Program:
    """A program from `opcode stall write read wait target`; numbers left out are 1, none, none, 0 and none."""
    defaults = ["1", "7", "7", "0", ""]
    full = [line.split() + defaults[len(line.split()) - 1 :] for line in lines]
    return sass.expanded("\n".join(f" {' '.join(words)} " for words in full))


def cycles(*lines: str, warps: int = 1) -> float:
    return Multiprocessor(Kernel(listing(*lines), warps, 32, 0), 1, [1] * len(lines), "L2", 64.0).run().cycles


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in SLOW)) for case in CASES])
def test_predictions_are_those_of_the_table_and_near_the_measured_times(case):
    """No prediction is off by more than 36%, on kernels for none of which a constant was fitted."""
    row = next(row for row in records.read(calibration.RESULTS)["rows"] if row["case"] == case.name)
    predicted = case.predicted()
    assert predicted == pytest.approx(row["predicted"], rel=1e-3) and row["measured"] == case.measured
    assert 0.64 < predicted / case.measured < 1.36


def test_measured_times_are_those_of_the_device_check():
    """As long as the committed device check is the run that the model was calibrated on."""
    record = records.read(records.RESULTS / "device-nvidia-h200.json")
    if not str(record["commit"]).startswith("a415628"):
        pytest.skip("the committed device check is of later kernels")
    _, timed = records.timed_cases(record)
    measured = {(case["name"], provider): result["median"] for case in timed for provider, result in case["results"].items() if "median" in result}
    chain = "chain N=65536 T=40 D=2 C=2 H=128 ancestral "
    calibrated = {case.name: case.measured for case in CASES}
    for provider, precision in (("ours", "float32"), ("ours_bf16", "bf16")):
        forward, both = measured[chain + "forward", provider], measured[chain + "forward+backward", provider]
        assert calibrated[f"chain forward, {precision}, D = 2, N = 65,536"] == pytest.approx(forward, rel=1e-3)
        assert calibrated[f"chain backward, {precision}, N = 65,536"] == pytest.approx(both - forward, rel=1e-3)


def test_stall_cycles_and_dependent_results():
    assert cycles("FFMA 4", "FFMA 4", "EXIT") == 8
    # The result of a shared load is there after one cycle in the pipe and 29 + 1 of latency.
    assert cycles("LDS 1 0", "FFMA 1 7 7 1", "EXIT") == pytest.approx(31 + 1)
    assert cycles("LDG 1 0", "FFMA 1 7 7 1", "EXIT") > 290


def test_warps_share_pipes():
    """Four warps on four schedulers do not disturb each other's arithmetic, but share the unit of loads and stores."""
    assert cycles(*["FFMA"] * 20, "EXIT", warps=4) == cycles(*["FFMA"] * 20, "EXIT")
    assert cycles(*["FFMA"] * 20, "EXIT", warps=8) == pytest.approx(2 * cycles(*["FFMA"] * 20, "EXIT"), rel=0.1)
    assert cycles(*["LDS"] * 20, "EXIT", warps=4) == pytest.approx(4 * cycles(*["LDS"] * 20, "EXIT"), rel=0.1)


def test_a_barrier_waits_for_the_last_warp():
    """Of eight warps, four have their exponential eight cycles after the others."""
    assert cycles("BAR", "EXIT") == BARRIER
    assert cycles("MUFU", "BAR", "EXIT", warps=8) == cycles("BAR", "EXIT", warps=8) + 8


def test_tensor_cores_have_the_published_rates():
    """A multiprocessor of an H200 does 4096 dense fp16 FLOP a cycle, 2048 of tf32; a left factor in shared memory is read at 128 bytes a cycle."""
    for kind, inner, rate in (("BF16", 16, 4096), ("TF32", 8, 2048)):
        line = f" HGMMA.64x128x{inner}.F32.{kind} 1 7 7 0  R24, {{}}, R24"
        from_registers, from_memory = sass.expanded("\n".join(map(line.format, ("R4", "gdesc[UR4]")))).instructions
        assert 2 * 64 * 128 * inner / timing(from_registers).cycles == rate
        assert timing(from_memory).cycles == timing(from_registers).cycles
    narrow = sass.expanded(" HGMMA.64x8x16.F32.BF16 1 7 7 0  R24, gdesc[UR4], R24").instructions[0]
    assert timing(narrow).cycles == 64 * 16 * 2 / 128


def test_turns_are_extrapolated():
    body = Kernel(listing("FFMA 4", "LDS 2 0", "FADD 4 7 7 1", "BRA 5 7 7 0 0", "EXIT"), 4, 32, 0)
    many = Multiprocessor(body, 1, [50], "L2", 64.0).run()
    assert predict(body, 1, [50]).cycles == pytest.approx(many.cycles, rel=1e-2)
    assert predict(body, 1, [50]).turn == pytest.approx(many.cycles / 50, rel=5e-2)


def test_a_wait_for_copies_leaves_the_newest_groups_under_way():
    """Loads of the next turn overlap with this turn's work: `DEPBAR.LE SB0, 1` waits for all groups but the last."""
    first, between, last = ["LDGSTS", "LDGDEPBAR"], ["FFMA 15"] * 20, ["LDGSTS", "LDGDEPBAR"]

    def waiting(number):
        program = sass.expanded("\n".join(f" {line} {'1 ' * (line.count(' ') == 0)}7 7 0  " for line in [*first, *between, *last]))
        wait = sass.expanded(f" DEPBAR.LE 1 7 7 0  SB0, {number:#x}\n EXIT 1 7 7 0  ")
        return Multiprocessor(Kernel(sass.Program((*program.instructions, *wait.instructions)), 1, 32, 0), 1, [], "L2", 64.0).run().cycles

    assert waiting(0) > 20 * 15 + 290 and waiting(1) < 20 * 15 + 20
    listed = sass.expanded(" DEPBAR.LE 1 7 7 0  SB0, 0x3")
    assert sass.condensed(listed).endswith("SB0, 0x3"), "a condensed listing keeps the number"


def test_a_branch_past_the_main_loop_is_not_taken():
    """What follows the loop may begin with the values for no turns, which an unconditional branch from the loop's end skips."""
    program = listing("MOV", "BRA 5 7 7 0 6", "HMMA.16816.F32", "BRA 5 7 7 0 2", "MOV", "BRA 5 7 7 0 7", "MOV", "EXIT")
    empty = dataclasses.replace(program.instructions[1], predicate="@P0")
    kernel = Kernel(sass.Program((program.instructions[0], empty, *program.instructions[2:])), 1, 32, 0)
    assert kernel.program.main_loop == sass.Loop(2, 3)
    assert predict(kernel, 1, [3]).cycles > predict(kernel, 1, [2]).cycles > predict(kernel, 1, [1]).cycles


def test_programs_fill_the_device_in_waves():
    kernel = Kernel(listing("FFMA 4", "EXIT"), 8, 128, 100 << 10)
    assert kernel.resident == 2  # by registers and by shared memory
    assert predict(kernel, 2 * MULTIPROCESSORS).waves == 1 and predict(kernel, 2 * MULTIPROCESSORS + 1).waves == 2


def test_listings_keep_what_the_model_reads():
    """Control codes are decoded from the text of `cuobjdump`: a load with scoreboard 2, then a branch back that waits for it."""
    text = """
        /*0000*/                   LDG.E.128.SYS R4, [R2] ;     /* 0x0000000002047381 */
                                                                /* 0x000ea400001eed00 */
        /*0010*/              @!P0 BRA 0x0 ;                    /* 0x0000000000008947 */
                                                                /* 0x004fea000383ffff */
        /*0020*/                   BRA 0x20;                    /* 0xfffffffc00fc7947 */
                                                                /* 0x000fc0000383ffff */
    """
    program = sass.parse(text)
    load, branch, trap = program.instructions
    assert (load.write, load.stall, load.width, load.wait) == (2, 2, 16, 0)
    assert (branch.wait, branch.stall, branch.predicate, branch.target, trap.target) == (4, 5, "@!P0", 0, 32)
    assert program.loops == [sass.Loop(0, 1)] and program.count(program.main_loop, "LDG") == 1
    again = sass.expanded(sass.condensed(program))
    assert again.loops == program.loops and [each.wait for each in again.instructions] == [0, 4, 0]


def test_the_main_loop_is_the_innermost_with_all_products():
    """In a loop over pieces with a loop over steps, that over steps; in a loop over steps with one in each layer, that over steps too."""
    pieces = listing("FFMA", "MOV", "HMMA.16816.F32 1", "BRA 5 7 7 0 1", "BRA 5 7 7 0 0", "EXIT")
    assert pieces.main_loop == sass.Loop(1, 3)
    layers = listing("HMMA.16816.F32", "BRA 5 7 7 0 0", "HMMA.16816.F32", "BRA 5 7 7 0 2", "BRA 5 7 7 0 0", "EXIT")
    assert layers.main_loop == sass.Loop(0, 4)
    assert listing("FFMA", "BRA 5 7 7 0 0", "MOV", "MOV", "BRA 5 7 7 0 2", "EXIT").main_loop == sass.Loop(2, 4)


def test_a_trace_covers_one_turn():
    kernel = Kernel(listing("FFMA 4", "BAR 1", "BRA 5 7 7 0 0", "EXIT"), 2, 32, 0)
    found = list(trace.events(kernel))
    assert [event.instruction.name for event in found] == ["FFMA", "BAR", "BRA"]
    assert found[0].time == 0 and found[-1].time == sum(event.waited for event in found)


def test_the_table_is_what_the_record_says():
    record = records.read(calibration.RESULTS)
    assert records.markdown_of(record) == calibration.RESULTS.with_suffix(".md").read_text()
