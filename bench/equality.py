"""The same run however it is spread: over processes, ZeRO stages and accumulated parts. A part of `bench.soak`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.engine import world
from tests.engine.small import METHODS, case, distance

EQUAL_STEPS = 50


def equality() -> dict[str, Any]:
    """One process against two and four, ZeRO stages against stage 0, accumulated parts against a whole batch: differences of losses, relative.

    Under the pinwheel, whose arms are 0.005 wide, the system itself makes rounding grow, in float32 and float64 alike.
    """
    world.LIMIT = 3600
    kinds = {f"{method}, {kind}": case(method, EQUAL_STEPS, double=kind == "float64") for method in METHODS for kind in ("float32", "float64")}
    stages = {f"{method}, ZeRO {stage}": case(method, EQUAL_STEPS, kind="deepspeed", zero_stage=stage) for method in METHODS for stage in range(4)}
    parts = {f"{name}, 4 x 32": {**settings, "accumulation": 4} for name, settings in kinds.items()}
    narrow = {
        f"{name}, pinwheel": {**kinds[name], "overrides": [*kinds[name]["overrides"], "prior=pinwheel"]} for name in kinds if "semi" not in name
    }
    kinds |= narrow
    cases = {**kinds, **stages, **parts}

    def run(size: int, names: Sequence[str]) -> dict[str, Any]:
        return dict(zip(names, world.run("several", size, cases=[cases[name] for name in names])[0], strict=True))

    def differences(one: Any, other: Any) -> dict[str, float]:
        steps = [distance(one, other, step) for step in range(EQUAL_STEPS)]
        return {"first step": steps[0], "over all": max(steps)}

    alone, two, four = run(1, [*kinds, *parts]), run(2, [*kinds, *stages]), run(4, list(kinds))
    found = {f"{name}, {size} processes": differences(of[name], alone[name]) for size, of in ((2, two), (4, four)) for name in kinds}
    found |= {f"{name} against 0, 2 processes": differences(two[name], two[f"{name[:-1]}0"]) for name in stages if name[-1] != "0"}
    return {"steps": EQUAL_STEPS, **found, **{name: differences(alone[name], alone[name.removesuffix(", 4 x 32")]) for name in parts}}
