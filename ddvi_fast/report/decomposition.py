"""Decomposition of a bound into its terms and the steps of a chain, and the time of each part."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import ops
from ddvi_fast.objectives import Progress
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.chain import ChainPosterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, draw_classes
from ddvi_fast.posteriors.placing import standard_log_prob
from ddvi_fast.priors import Prior
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws

_REPEATS = 7


@dataclass(frozen=True)
class Decomposition:
    """Decomposed bound: means over examples, in nats.

    Args:
        terms: Terms by name, whose sum is the bound.
        steps: Log-ratios `log r(y_t | y_{t-1}) - log q(y_{t-1} | y_t, x)` of a chain for t = T, ..., 1, whose sum is the term ``path``; empty
            for other posteriors.
        error: Standard error of the bound over examples.
    """

    terms: dict[str, float]
    steps: list[float]
    error: float


@torch.no_grad()
def decompose(experiment: Experiment, x: Tensor, draws: Draws) -> Decomposition | None:
    """Decompose the bound of one sample per row of `x` [N, ...]; None for a posterior without a density."""
    model, posterior = experiment.model, experiment.posterior
    if not posterior.has_density:
        return None
    family, encoded, labels, of_classes = of_drawn_classes(posterior, posterior.encode(x, draws), draws)
    path = family.latent_path(encoded, 1, draws)
    u = family.unwhitened(encoded, path[-1, 0])
    z = model.prior.push(u, labels) if family.pushes else u
    ratios, steps = ratio_terms(family, encoded, path)
    terms = {"log p(x | z)": model.log_likelihood(x, z), **prior_term(model.prior, family, u, labels), **of_classes, **ratios}
    bound = torch.stack(list(terms.values())).sum(0)
    error = float(bound.std() / max(1, len(bound)) ** 0.5)
    return Decomposition({name: float(value.mean()) for name, value in terms.items()}, steps.mean(1).tolist(), error)


def of_drawn_classes(posterior: Posterior, encoded: Any, draws: Draws) -> tuple[Posterior, Any, Tensor | None, dict[str, Tensor]]:
    """Draw the class of each row, if the posterior has classes.

    Returns:
        The family, the output of its encoders for these classes, the classes [N], and their terms [N] of the bound by name; without classes
        the posterior itself, `encoded`, None and no terms.
    """
    if not isinstance(posterior, ClassConditional):
        return posterior, encoded, None, {}
    labels = draw_classes(encoded.log_probs, 1, draws)[0]
    log_q = encoded.log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    log_p = torch.full_like(log_q, -math.log(posterior.num_classes))
    return posterior.family, posterior.family_of_class(encoded, labels), labels, {"log p(c)": log_p, "−log q(c | x)": -log_q}


def prior_term(prior: Prior, family: Posterior, u: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """Log-density [N] of the prior by name: of its noise `u` [N, D] in its coordinates, otherwise of latents, given the class if there is one."""
    if family.pushes:
        return {"log p(u)": standard_log_prob(u)}
    return {"log p(z)" if labels is None else "log p(z | c)": prior.log_prob(u, labels)}


def ratio_terms(family: Posterior, encoded: Any, path: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Terms [N] of the family's log-ratio by name, and the log-ratios [T, N] of the steps of a chain, for a path [S, 1, N, D]."""
    name = "u" if family.pushes else "z"
    log_scale = family.log_scale(encoded) if family.whitens else path.new_zeros(path.shape[2])
    if isinstance(family, ChainPosterior):
        steps, start = step_ratios(family, encoded, path[:, 0]), "v_T" if family.whitens else "y_T"
        scale = {f"log |d{name} / dv|": log_scale} if family.whitens else {}
        return {**scale, "path": steps.sum(0), f"−log q({start} | x)": -ops.gaussian_log_prob(path[0, 0], *family.start(encoded))}, steps
    ratio = family.log_ratio(encoded, path)[0] + log_scale
    return {f"−log q({name} | x)" if family.tractable else "log-ratio": ratio}, ratio.new_zeros((0, len(ratio)))


def step_ratios(family: ChainPosterior, encoded: Any, path: Tensor) -> Tensor:
    """Log-ratio of each step of a path [T + 1, N, D], start first: nats [T, N], step T first (docs/method.md, section 2)."""
    table = family.coefficients()
    steps = enumerate(reversed(range(len(table))))
    return torch.stack([family.step_log_ratio(encoded, path[place], path[place + 1], step, table) for place, step in steps])


def timings(experiment: Experiment, x: Tensor, draws: Draws) -> dict[str, float]:
    """Measure the parts of an evaluation and of a training step on a batch `x`: median seconds by name."""
    model, posterior = experiment.model, experiment.posterior
    with torch.no_grad():
        z = posterior.sample(x, 1, draws).z
        parts: dict[str, Callable[[], object]] = {
            "encode": lambda: posterior.encode(x, draws),
            "encode and sample": lambda: posterior.sample(x, 1, draws),
            "decoder and likelihood": lambda: model.log_likelihood(x, z),
        }
        if model.prior.has_density:
            parts["prior density"] = lambda: model.prior.log_prob(z)
        measured = {name: _median_seconds(part) for name, part in parts.items()}
    objective = experiment.phases[-1].objective
    objective.train()
    measured["training step, forward and backward"] = _median_seconds(lambda: _forward_and_backward(experiment, x, draws))
    objective.eval()
    objective.zero_grad()
    return measured


def _forward_and_backward(experiment: Experiment, x: Tensor, draws: Draws) -> None:
    for update in experiment.phases[-1].objective.updates(x, Progress(0, 1), draws):
        update.terms().total().backward()


def _median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS + 2):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[_REPEATS // 2]
