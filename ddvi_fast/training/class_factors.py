"""Factors of a q(c | x) that sees the model, fitted when all else is trained."""

from __future__ import annotations

import torch

from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws
from ddvi_fast.training.evaluate import EVALUATION_SEED_OFFSET, evaluated

ROWS = 2000  # training examples, evenly spaced, whose bound the factors maximize
_PLACE = 4 << 32  # beside the draws of the evaluation


def fit_class_factors(config: Config, experiment: Experiment, dataset: Dataset) -> None:
    """Fit the factors of the experiment's posterior to training examples, if its q(c | x) has factors to be fitted; every process does the same."""
    posterior = experiment.posterior
    if not isinstance(posterior, ClassConditional) or posterior.informed != "fitted":
        return
    size = dataset.size()
    rows = torch.linspace(0, size - 1, min(size, ROWS), dtype=torch.float64, device=dataset.device).long()
    draws, augment = Draws(config.seed + EVALUATION_SEED_OFFSET, _PLACE), augmentation(config)
    x = dataset.inputs(rows)
    with evaluated(config, experiment):
        posterior.fit_factors(experiment.model, x if augment is None else augment(x, draws), draws=draws)
