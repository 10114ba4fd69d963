"""Self-test of about ten seconds: numerical checks of the fast code on this machine.

Each reference is independent of the code that is checked: the published answer of the random generator, float64 arithmetic, a closed form
of the evidence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch

from ddvi_fast import _backend, denoisers, likelihoods, metrics, models, networks, objectives, parity, posteriors, priors, rng, schedules
from ddvi_fast.doctor.findings import Finding
from ddvi_fast.rng import Draws

# Salmon et al. 2011, known answer of Philox 4x32-10 for key 0 and counter 0.
PHILOX_OF_ZERO = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
_REPORT = "results are wrong on this machine: DDVI_FAST_BACKEND=reference avoids the kernels; please report this output"


def self_test(device: str | None = None) -> list[Finding]:
    """Run the checks on `device` (default: the GPU if there is one).

    Example:
        >>> [finding.status for finding in self_test("cpu")][:2]
        ['ok', 'ok']
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return [*_guarded("random numbers", _random_numbers), *_operations(torch.device(device)), *_guarded("bounds", _bounds), *_training(device)]


def _guarded(name: str, check: Callable[[], str]) -> Iterator[Finding]:
    """Run a check: its numbers, or the error with which it failed."""
    start = time.perf_counter()
    try:
        said = check()
    except Exception as error:  # every failure is reported
        what = " ".join(str(error).split()) or type(error).__name__
        yield Finding("self-test", name, "problem", f"failed: {what[:300]}", _REPORT)
    else:
        yield Finding("self-test", name, "ok", f"{said}; {time.perf_counter() - start:.2f} s")


def _random_numbers() -> str:
    words = tuple(int(word) for word in rng.words(Draws(0), (1, 4), 0)[0])
    assert words == PHILOX_OF_ZERO, f"Philox of zeros gave {', '.join(map(hex, words))}"
    return "Philox 4x32-10 gives its published answer"


def _operations(device: torch.device) -> Iterator[Finding]:
    fused = _backend.fused(device)
    checks = [(operation, operation, fused) for operation in _backend.OPERATIONS]
    if device.type == "cuda" and not _backend.unavailable("cuda"):
        checks += [(f"{operation} of few rows", operation, "cuda") for operation in _backend.CUDA_OPERATIONS]
    for name, operation, backend in checks:

        def check(operation: str = operation, backend: str = backend) -> str:
            errors = [error for case in parity.cases(operation, small=True) for error in parity.check(case, backend, device).values()]
            return f"{backend} on {device.type}: values and gradients within {max(errors):.1e} of float64, {len(errors)} compared"

        yield from _guarded(name, check)


def _bounds() -> str:
    """`x = z + noise`, both standard normal: `x` is N(0, 2 I), and the best Gaussian posterior is N(x/2, I/2), whose bound is the evidence."""
    decoder, encoder = networks.MLP(2, [], 2), networks.MLP(2, [], 4)
    with torch.no_grad():
        for network, rows in ((decoder, [[1, 0], [0, 1]]), (encoder, [[0.5, 0], [0, 0.5], [0, 0], [0, 0]])):
            network.output_layer.weight.copy_(torch.tensor(rows, dtype=torch.float32, device="cpu"))
            network.output_layer.bias.zero_()
        encoder.output_layer.bias[2:] = math.log(0.5)
    model = models.LatentVariableModel(priors.make("gaussian", dim=2), decoder, likelihoods.make("gaussian", scale=1.0))
    x = rng.normal(Draws(5), (64, 2), 0)
    exact = -math.log(4 * math.pi) - x.square().sum(1) / 4
    error = float((metrics.elbo(model, posteriors.Gaussian(encoder, 2), x, 4) - exact).abs().max())
    assert error < 1e-4, f"the bound of a posterior that is exact is {error:.1e} nats from the evidence"
    return f"the bound of the exact posterior is within {error:.0e} nats of the evidence in closed form"


def _training(device: str) -> Iterator[Finding]:
    def check() -> str:
        seconds, first, last = _train(device)
        assert math.isfinite(last) and last < first, f"the loss went from {first:.2f} to {last:.2f} nats"
        return f"{1000 * seconds:.1f} ms a step of 128 examples, T = 10; loss from {first:.2f} to {last:.2f} nats in {_STEPS} steps on {device}"

    return _guarded("training", check)


_STEPS = 40


def _train(device: str) -> tuple[float, float, float]:
    """Train a small diffusion posterior: median seconds per step, and loss of a fixed batch at the first and at the last step."""
    model = models.LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [64], 16, draws=Draws(1)), likelihoods.make("bernoulli"))
    posterior = posteriors.Diffusion(
        networks.MLP(16, [64], 4, draws=Draws(2)),
        denoisers.ResidualMLP(2, 8, 10, 64, draws=Draws(3)),
        schedules.make("cosine", 10),
        context_encoder=networks.MLP(16, [64], 8, draws=Draws(4)),
    )
    model, posterior = model.to(device), posterior.to(device)
    objective = objectives.DDVI(objectives.ELBO(model, posterior))
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    x, losses, times = (rng.uniform(Draws(6), (128, 16), 0, device=device) > 0.8).float(), [], []
    for step in range(_STEPS):
        start = time.perf_counter()
        total = 0.0
        for update in objective.updates(x, objectives.Progress(step, _STEPS), Draws(7)):  # the same draws, so that losses are comparable
            optimiser.zero_grad()
            loss = update.terms().total()
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        losses.append(total)
        times.append(time.perf_counter() - start)
    return sorted(times)[_STEPS // 2], losses[0], losses[-1]
