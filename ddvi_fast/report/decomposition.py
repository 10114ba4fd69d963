"""Decomposition of a bound into its terms and the steps of a chain, and the time of each part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import ops
from ddvi_fast.objectives import Progress
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.reference.chain import step_log_ratio
from ddvi_fast.rng import Draws

_REPEATS = 7


@dataclass(frozen=True)
class Decomposition:
    """Decomposed bound: means over examples, in nats.

    Args:
        terms: Terms by name, whose sum is the bound.
        steps: Log-ratios `log r(y_t | y_{t-1}) - log q(y_{t-1} | y_t, x)` of a diffusion posterior for t = T, ..., 1, whose sum is the
            term ``path``; empty for other posteriors.
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
    encoded = posterior.encode(x, draws)
    path = posterior.latent_path(encoded, 1, draws)
    z = path[-1, 0]
    if isinstance(posterior, Diffusion):
        steps = step_ratios(posterior, encoded.context, path[:, 0])
        ratios = {"path": steps.sum(0), "−log q(y_T | x)": -ops.gaussian_log_prob(path[0, 0], encoded.mean, encoded.log_var)}
    else:
        steps = x.new_zeros((0, len(x)))
        ratios = {"−log q(z | x)": posterior.log_ratio(encoded, path)[0]}
    terms = {"log p(x | z)": model.log_likelihood(x, z), "log p(z)": model.prior.log_prob(z), **ratios}
    bound = torch.stack(list(terms.values())).sum(0)
    error = float(bound.std() / max(1, len(bound)) ** 0.5)
    return Decomposition({name: float(value.mean()) for name, value in terms.items()}, steps.mean(1).tolist(), error)


def step_ratios(posterior: Diffusion, context: Tensor | None, path: Tensor) -> Tensor:
    """Log-ratio of each step of a path [T + 1, N, D], start first: nats [T, N], step T first (docs/method.md, section 2)."""
    table, network = posterior.coefficients().to(path), posterior.active_denoiser()
    ratios = []
    for place, step in enumerate(reversed(range(len(table)))):
        weight_state, weight_output, deviation, scale, beta = table[step].unbind()
        at = torch.full(path.shape[1:2], step, device=path.device)
        mean = weight_state * path[place] + weight_output * network(path[place], context, at)
        noise = (path[place + 1] - mean) / deviation
        ratios.append(step_log_ratio(path[place], path[place + 1], noise, deviation, scale, beta))
    return torch.stack(ratios)


def timings(experiment: Experiment, x: Tensor, draws: Draws) -> dict[str, float]:
    """Measure the parts of an evaluation and of a training step on a batch `x`: median seconds by name."""
    model, posterior = experiment.model, experiment.posterior
    with torch.no_grad():
        z = posterior.sample(x, 1, draws).z
        parts: dict[str, Callable[[], object]] = {
            "encode": lambda: posterior.encode(x, draws),
            "encode and sample": lambda: posterior.sample(x, 1, draws),
            "decoder and likelihood": lambda: model.log_likelihood(x, z),
            "prior density": lambda: model.prior.log_prob(z),
        }
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
