"""Choice of a run's engine: one process, several processes, or DeepSpeed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from ddvi_fast import _checks, distributed
from ddvi_fast.config.schema import Config
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.optimizers import choose
from ddvi_fast.objectives import Objective
from ddvi_fast.precision import SCALED, emulation, in_force, support
from ddvi_fast.recipes.phases import Optimisation

ENGINES = ("auto", "local", "parallel", "deepspeed")
MakeEngine = Callable[[Objective, Optimisation], Engine]


def engine_name(config: Config) -> str:
    """Name of the engine: the configuration's, or with ``auto`` the one that fits processes, precision and accumulation."""
    name = _checks.choice(config.engine, ENGINES, "engine")
    if name != "auto":
        return name
    if config.zero_stage > 0:
        return "deepspeed"
    if distributed.world_size() > 1:
        return "deepspeed" if importlib.util.find_spec("deepspeed") is not None else "parallel"
    return "parallel" if config.accumulation > 1 or config.precision in SCALED else "local"


def make_engines(config: Config) -> MakeEngine:
    """Function that makes the engine of a phase from its objective and optimisation."""
    name = engine_name(config)
    if name == "local":
        return _local(config, distributed.world_size() > 1)
    _checks.require(name == "deepspeed" or config.zero_stage == 0, "zero_stage", "0 without engine=deepspeed", config.zero_stage)
    options: dict[str, Any] = {"precision": config.precision, "accumulation": config.accumulation, "optimizer": config.optimiser, "capture": False}
    if name == "parallel":
        return lambda objective, optimisation: Engine(objective, optimisation, config.device, **options)
    from ddvi_fast.engine.deepspeed_engine import DeepSpeedEngine

    return lambda objective, optimisation: DeepSpeedEngine(objective, optimisation, config.device, zero_stage=config.zero_stage, **options)


def check_engine(config: Config) -> None:
    """Refuse settings that an engine would refuse, before there is one."""
    from ddvi_fast.engine.deepspeed_engine import STAGES

    _checks.require(config.zero_stage in STAGES, "zero_stage", "0, 1, 2 or 3", config.zero_stage)
    device = _checks.device(config.device)
    support(config.precision, device)
    choose(config.optimiser, device)
    make_engines(config)


def engine_line(config: Config) -> str | None:
    """One line about engine, precision and optimizer; about the precision alone for the local engine, and None if that is float32."""
    name = engine_name(config)
    if name == "local":
        return None if config.precision == "float32" else f"precision {in_force(config.precision, torch.device(config.device))}{_emulation(config)}"
    stage = f", ZeRO {config.zero_stage}" if name == "deepspeed" else ""
    adam, products = choose(config.optimiser, torch.device(config.device)), in_force(config.precision, torch.device(config.device))
    return f"engine {name}{stage}, {distributed.world_size()} x {config.accumulation} parts of a batch, {products}, {adam.note}{_emulation(config)}"


def _emulation(config: Config) -> str:
    """A line with the warning of a precision that the device emulates."""
    told = emulation(config.precision, torch.device(config.device))
    return f"\nwarning: {told}" if told else ""


def _local(config: Config, several: bool) -> MakeEngine:
    for fits, argument, expected, got in (
        (not several, "engine", "parallel or deepspeed in several processes", "local"),
        (config.accumulation == 1, "accumulation", "1 with engine=local", config.accumulation),
        (config.zero_stage == 0, "zero_stage", "0 with engine=local", config.zero_stage),
        (config.optimiser in ("auto", "torch"), "optimiser", "auto or torch with engine=local", config.optimiser),
    ):
        _checks.require(fits, argument, expected, got)
    return lambda objective, optimisation: Engine(
        objective, optimisation, config.device, capture=config.capture, compile_networks=config.compile_networks, precision=config.precision
    )
