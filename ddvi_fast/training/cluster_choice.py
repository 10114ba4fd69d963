"""Number of clusters by the bound of examples that are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ddvi_fast import _checks, distributed, metrics
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.engine.loop import train
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.length import fitted_to_size
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import tell
from ddvi_fast.training.engines import make_engines

_HELD_OUT = 0.2  # fraction of the training examples
_SAMPLES = 100  # of the importance-weighted bound


def with_chosen_clusters(config: Config, load: Callable[[Config], Dataset]) -> Config:
    """The configuration with one of the numbers of clusters of `method.clustering.compare`, if there are any.

    Each is trained without a fifth of the training examples. The smallest number whose mean bound of these is within one standard error of the
    largest mean is chosen; the standard error is that of the differences from it, example by example.

    Args:
        config: Configuration of the run.
        load: Function that loads the data set of a configuration.

    Raises:
        InputError: A number is below 1, or there are several processes.
    """
    numbers = sorted(set(_checks.integers(config.method.clustering.compare, "method.clustering.compare", 1)))
    if not numbers:
        return config
    _checks.require(distributed.world_size() == 1, "method.clustering.compare", "[] in several processes", numbers)
    held = replace(config, dataset=replace(config.dataset, validation=_HELD_OUT))
    dataset = load(held)
    bounds = torch.stack([_bounds(_with_clusters(held, number), dataset) for number in numbers])
    means = bounds.mean(1)
    behind = bounds[means.argmax()] - bounds
    error = behind.std(1) / len(dataset.inputs(split="test")) ** 0.5
    chosen = numbers[int((behind.mean(1) <= error).nonzero()[0])]
    shown = ", ".join(f"{number}: {mean:.3f}" for number, mean in zip(numbers, means.tolist(), strict=True))
    tell(f"clusters: {shown} nats per held-out example; {chosen} is the smallest number within one standard error of the best")
    return _with_clusters(config, chosen)


def _with_clusters(config: Config, number: int) -> Config:
    return replace(config, method=replace(config.method, clustering=replace(config.method.clustering, num_clusters=number)))


def _bounds(config: Config, dataset: Dataset) -> torch.Tensor:
    """Importance-weighted bounds of the held-out examples after training on the others, float64 [N]."""
    config = fitted_to_size(config, dataset.size())
    experiment = build(config, dataset)
    train(experiment.phases, dataset, config.recipe.batch_size, config.seed, make_engines(config), [], augmentation(config))
    experiment.eval()
    with torch.no_grad():
        return metrics.iwae_bound(experiment.model, experiment.posterior, dataset.inputs(split="test"), _SAMPLES, Draws(config.seed)).double()
