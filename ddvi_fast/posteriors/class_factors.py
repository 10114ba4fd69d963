"""Factors of the classifier and of the model in the logits of q(c | x) (docs/method.md, section 7)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

# First factors, of which the best pair is refined. The pair (1, 0) is the first: it stays where a loss is not a number.
_OF_CLASSIFIER = (1.0, 0.3, 0.1, 0.0)
_OF_MODEL = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_ITERATIONS = 50  # of L-BFGS


def best_factors(logits: Tensor, scores: Tensor, bounds: Tensor) -> Tensor:
    """Find the factors `(a, b)` with which `q = softmax(a logits + b scores)` gives the best bound `E_n[sum_c q_nc (bounds_nc - log q_nc)]`.

    Args:
        logits: Logits of a classifier [N, C].
        scores: Approximate log-densities of the classes in nats [N, C], up to a constant for each row.
        bounds: Bounds on `log p(x, c)` in nats [N, C].

    Returns:
        The factors, float64 [2], at least 0; their bound is at least that of (1, 0), which they are where that bound is not a number.

    Example:
        >>> scores = torch.tensor([[0.0, -1.0], [-3.0, 0.0]])
        >>> round(best_factors(torch.zeros(2, 2), scores, 0.5 * scores)[1].item(), 3)
        0.5
    """
    logits, scores, bounds = (part.detach().double() for part in (logits, scores, bounds))

    def loss(factors: Tensor) -> Tensor:
        log_probs = torch.log_softmax(factors[0] * logits + factors[1] * scores, -1)
        return -(log_probs.exp() * (bounds - log_probs)).sum(-1).mean()

    pairs = itertools.product(_OF_CLASSIFIER, _OF_MODEL)
    candidates = [torch.tensor(pair, dtype=torch.float64, device=logits.device) for pair in pairs]
    first = min(candidates, key=lambda pair: float(loss(pair)))
    return min(first, _refined(loss, first), key=lambda pair: float(loss(pair)))


def _refined(loss: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    """The minimum of `loss` that L-BFGS finds from `first`, in logarithms of the factors, whose scales differ by orders of magnitude."""
    logs = torch.zeros_like(first).requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(first * logs.exp())
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return first * logs.detach().exp()
