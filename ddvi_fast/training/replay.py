"""Replay of a training step whose loss or gradient was not finite, from the bundle in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from ddvi_fast.config.compose import from_dict
from ddvi_fast.data import Dataset
from ddvi_fast.engine import checkpoint, failed_step
from ddvi_fast.engine.checkpoint_manager import tensors_of
from ddvi_fast.engine.non_finite import bad_rows, bad_terms
from ddvi_fast.objectives import Terms, Update
from ddvi_fast.precision import products_in
from ddvi_fast.recipes.build import build
from ddvi_fast.rng import Draws


@dataclass(frozen=True)
class Replayed:
    """Result of a replay.

    Args:
        step: Number of the step in the run, from 0.
        terms: Means of the terms of each update, in nats.
        names: Names of the terms that are not finite, or of the parameters whose gradients are not; empty if all are.
        examples: Indices in the training split of the examples with such a term.
    """

    step: int
    terms: list[dict[str, float]]
    names: list[str]
    examples: list[int]


def replay(path: str | Path, dataset: Dataset) -> Replayed:
    """Compute the updates of a bundle's step on its batch, in one process, until one is not finite.

    Args:
        path: Path of the bundle.
        dataset: Data set of the run, from which the networks are built; the batch is in the bundle.
    """
    kept = failed_step.read(Path(path))
    config = from_dict(kept.state["config"])
    experiment = build(config, dataset)
    objective = experiment.phases[kept.state["phase"]].objective.to(dataset.device).train()
    checkpoint.load_tensors(kept.weights, tensors_of({"objective": objective}))
    x, products = kept.batch.to(dataset.device), products_in(config.precision, dataset.device)
    means: list[dict[str, float]] = []
    updates = objective.updates(x, kept.progress, Draws(config.seed, kept.state["first_index"]))
    while (update := _next(updates, products)) is not None:
        with products():
            terms = update.terms()
        means.append({name: float(value) for name, value in terms.means().items()})
        if names := bad_terms(terms) or _bad_gradients(objective, update, terms):
            rows = bad_rows(terms, len(x)).nonzero().flatten().tolist()
            return Replayed(kept.state["step"], means, names, [int(kept.indices[row]) for row in rows])
    return Replayed(kept.state["step"], means, [], [])


def _next(updates: Iterator[Update], products: Callable[[], AbstractContextManager]) -> Update | None:
    """The next update, or None; as in training, what several updates share is computed in the precision of products."""
    with products():
        return next(updates, None)


def _bad_gradients(objective: torch.nn.Module, update: Update, terms: Terms) -> list[str]:
    objective.zero_grad()
    terms.total().backward()
    return [name for name, parameter in objective.named_parameters() if parameter.grad is not None and not parameter.grad.isfinite().all()]
