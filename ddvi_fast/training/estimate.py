"""Estimates of a run before it is trained: parameters, memory, and time measured on ten steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import distributed
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.length import fitted_to_size
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.recipes.settings import shown
from ddvi_fast.rng import Draws
from ddvi_fast.training.engines import make_engines
from ddvi_fast.training.run import load_dataset, run_dir
from ddvi_fast.training.time_budget import seconds_a_step
from ddvi_fast.training.values import check_batches, check_values

_STEPS = 10
_ADAM_STATES = 2  # a first and a second moment for each parameter


def dry_run(config: Config) -> dict[str, Any]:
    """Estimate parameters, memory and time of a run; nothing is written.

    Returns:
        A dictionary with ``config`` (the settings that the run has), ``run_dir``, ``examples`` (of training and test), ``parameters`` (by part),
        ``bytes`` (by use: an estimate of the memory of a step, without buffers of torch), ``phases`` (steps, and seconds per step measured on
        ten steps of a copy) and ``seconds`` (the estimate for training, without evaluation).

    Raises:
        InputError: Everything that the run itself would refuse before its first step.
    """
    config = dataclasses.replace(config, device=distributed.local_device(config.device))
    check_values(config)
    dataset = load_dataset(config)
    config = fitted_to_size(config, dataset.size())
    check_batches(config, dataset)
    experiment = build(config, dataset)
    counts, held = parameters(experiment), memory(experiment, dataset, config.recipe.batch_size)
    batches = num_batches(dataset.size(), config.recipe.batch_size)
    steps = {phase.name: phase.num_steps(batches) for phase in experiment.phases}
    seconds = {phase.name: seconds_a_step(phase, config, dataset, make_engines(config), _STEPS) for phase in experiment.phases}
    return {
        "config": shown(config, dataclasses.asdict(config)),
        "run_dir": str(run_dir(config)),
        "examples": {"train": dataset.size("train"), "test": dataset.size("test")},
        "parameters": counts,
        "bytes": held,
        "phases": [{"name": name, "steps": steps[name], "seconds_a_step": seconds[name]} for name in steps],
        "seconds": sum(steps[name] * seconds[name] for name in steps),
    }


def parameters(experiment: Experiment) -> dict[str, int]:
    """Numbers of parameters by part: the model, each part of the posterior, further modules of the objectives, and ``all``."""
    parts: dict[str, Mapping[int, int]] = {"model": _sizes(experiment.model)}
    own = {id(parameter): parameter.numel() for parameter in experiment.posterior.parameters(recurse=False)}
    parts |= {f"posterior.{name}": _sizes(child) for name, child in experiment.posterior.named_children()} | {"posterior": own}
    parts |= {f"objective {phase.name}": _sizes(phase.objective) for phase in experiment.phases}
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, sizes in parts.items():
        if fresh := sum(size for key, size in sizes.items() if key not in seen):
            counts[name] = fresh
        seen |= sizes.keys()
    return {**counts, "all": sum(counts.values())}


def _sizes(module: nn.Module) -> dict[int, int]:
    return {id(parameter): parameter.numel() for parameter in module.parameters()}


def memory(experiment: Experiment, dataset: Dataset, batch_size: int) -> dict[str, int]:
    """Bytes of memory in a training step by use: ``weights``, ``gradients``, ``adam``, ``data``, ``activations`` (of the largest update), ``all``."""
    modules = nn.ModuleList([experiment.model, experiment.posterior, *(phase.objective for phase in experiment.phases)])
    weights = sum(parameter.numel() * parameter.element_size() for parameter in modules.parameters())
    data = sum(value.numel() * value.element_size() for value in vars(dataset).values() if isinstance(value, Tensor))
    x = dataset.inputs(slice(0, batch_size))
    activations = max(saved_for_backward(phase.objective, x) for phase in experiment.phases)
    held = {"weights": weights, "gradients": weights, "adam": _ADAM_STATES * weights, "data": data, "activations": activations}
    return {**held, "all": sum(held.values())}


def saved_for_backward(objective: Objective, x: Tensor) -> int:
    """Bytes that autograd saves for the backward pass of the largest update on a batch `x`, without parameters and `x`."""
    known = {value.untyped_storage().data_ptr() for value in (*objective.parameters(), *objective.buffers(), x)}
    largest, training = 0, objective.training
    objective.train()
    for update in objective.updates(x, Progress(0, 1), Draws(0)):
        kept: dict[int, int] = {}

        def keep(value: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            total = update.terms().total()
        largest = max(largest, sum(size for place, size in kept.items() if place not in known))
        del total
    objective.train(training)
    return largest


def duration(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> duration(42.4), duration(5400)
        ('42 s', '1.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
