"""Chains of few rows again and again for some seconds, to be run under a checker.

compute-sanitizer --tool racecheck python -m bench.device.races
"""

from __future__ import annotations

import argparse
import time

import torch

from ddvi_fast import denoisers, ops, schedules, use_backend
from ddvi_fast.rng import Draws


def chains(device: torch.device, backend: str, seconds: float) -> int:
    """Run chains forward and backward, in bf16 and float32, until the time is over; returns their number."""
    denoiser = denoisers.ResidualMLP(latent_dim=2, context_dim=2, num_steps=8, hidden_dim=128).to(device)
    table = schedules.make("linear", 8).coefficients("eps", eta=1.0).to(device)
    y, context = (torch.full((20, 2), 0.5, device=device, requires_grad=True) for _ in range(2))
    number, end = 0, time.monotonic() + seconds
    while number < 2 or time.monotonic() < end:
        precision = "float32" if device.type == "cpu" else ("bf16", "float32")[number % 2]
        with use_backend(backend):
            sample = ops.sample_chain(y, context, denoiser, table, draws=Draws(number), precision=precision)
        torch.autograd.grad(sample.z.sum() + sample.path.sum(), (y, context, *denoiser.parameters()))
        number += 1
    return number


def main() -> None:
    """Run the chains of both backends of a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    for backend in ("cuda", "triton"):
        print(f"chains in {backend}: {chains(torch.device('cuda'), backend, options.seconds / 2)}")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
