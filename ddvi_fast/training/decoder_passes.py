"""Passes through the decoder: rows that it decodes in training, and the number of epochs that fit into a budget of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast import _backend, _checks
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.distributed import Part, part_of_batch
from ddvi_fast.objectives import Progress
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.phases import Phase
from ddvi_fast.rng import Draws
from ddvi_fast.training.time_budget import shortened


def decoder_rows(config: Config, dataset: Dataset) -> int:
    """Number of rows that the decoder decodes in training, over all steps and processes: forward passes, with and without gradients.

    One step of a copy of each phase is counted. Passes backward are not.
    """
    experiment = build(config, dataset)
    batches = num_batches(dataset.size(), config.recipe.batch_size)
    return sum(phase.num_steps(batches) * _rows_a_step(phase, experiment.model.decoder, config, dataset) for phase in experiment.phases)


def within_passes(config: Config, dataset: Dataset) -> Config:
    """Shorten all stages of a run by one factor so that the decoder decodes at most `config.max_passes` rows per training example.

    At least one epoch of each stage is kept. Without `max_passes`, or if all epochs fit, the configuration is returned unchanged.
    """
    if config.max_passes is None:
        return config
    _checks.require(config.max_passes > 0, "max_passes", "a positive number", config.max_passes)
    share = config.max_passes * dataset.size() / decoder_rows(config, dataset)
    return config if share >= 1 else shortened(config, share)


def _rows_a_step(phase: Phase, decoder: nn.Module, config: Config, dataset: Dataset) -> int:
    """Rows that `decoder` decodes in one step of the phase on a whole batch; the reference calls it as a module."""
    rows = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += inputs[0].shape[:-1].numel()

    x, draws, augment = dataset.inputs(slice(0, config.recipe.batch_size)), Draws(config.seed), augmentation(config)
    x = x if augment is None else augment(x, draws)
    handle = decoder.register_forward_pre_hook(count)
    try:
        with _backend.use_backend("reference"), part_of_batch(Part()), torch.enable_grad():
            for update in phase.objective.train().updates(x, Progress(0.0, phase.epochs), draws):
                update.terms()
    finally:
        handle.remove()
    return rows
