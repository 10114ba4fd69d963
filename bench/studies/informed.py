"""Time of an informed step against a pass of the decoder by plain PyTorch: `python -m bench.studies.informed`.

The time of a step is the difference between chains with and without informed steps, divided by their number. All providers take turns in one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn

from bench.timing import time_together
from ddvi_fast import denoisers, likelihoods, models, networks, posteriors, priors, schedules
from ddvi_fast.rng import Draws

LATENTS, PIXELS, HIDDEN, CONTEXT = 20, 784, 400, 32


def model_and_plain() -> tuple[models.LatentVariableModel, nn.Sequential]:
    """A model whose decoder is an MLP, and that decoder in plain PyTorch."""
    decoder = networks.MLP(LATENTS, [HIDDEN], PIXELS, draws=Draws(1))
    plain = nn.Sequential(nn.Linear(LATENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)).requires_grad_(False)
    for layer, own in zip((plain[0], plain[2]), decoder.layers, strict=True):
        layer.load_state_dict(own.state_dict())
    return models.LatentVariableModel(priors.make("gaussian", dim=LATENTS), decoder, likelihoods.make("bernoulli")), plain


def chain(model: models.LatentVariableModel, steps: int, informed: int) -> posteriors.Diffusion:
    """A chain of `steps` steps, the last `informed` of which see the model."""
    return posteriors.Diffusion(
        networks.MLP(PIXELS, [HIDDEN], 2 * LATENTS + CONTEXT, draws=Draws(2)),
        denoisers.ResidualMLP(LATENTS, CONTEXT + (LATENTS if informed else 0), steps, draws=Draws(3)),
        schedules.make("constant", steps, beta=0.3),
        coordinates="encoder",
        informed_steps=informed,
        target=model if informed else None,
    )


def gradient_by_plain_torch(plain: nn.Module, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The gradient of the log joint density for the latents, with operations of PyTorch alone."""
    point = z.detach().requires_grad_()
    likelihood = -nn.functional.binary_cross_entropy_with_logits(plain(point), x, reduction="sum")
    return torch.autograd.grad(likelihood - 0.5 * point.square().sum(), point)[0]


def providers(rows: int, steps: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name: chains forward, chains with their backward pass, and the decoder's passes."""
    model, plain = model_and_plain()
    x = model.simulate(rows, Draws(4)).x
    z = torch.randn(rows, LATENTS, generator=torch.Generator().manual_seed(0))
    made = {"blind": chain(model, steps, 0), "informed": chain(model, steps, steps)}
    encoded = {name: posterior.encode(x) for name, posterior in made.items()}
    torch.testing.assert_close(made["informed"]._target.at(x, None)(z), gradient_by_plain_torch(plain, x, z), rtol=1e-3, atol=1e-3)

    def forward(name: str) -> None:
        with torch.no_grad():
            made[name].draw(encoded[name], 1, Draws(5))

    def both(name: str) -> None:
        made[name].zero_grad()
        y, log_ratio = made[name].draw(type(encoded[name])(*map(_detached, encoded[name])), 1, Draws(5))
        (y.sum() + log_ratio.sum()).backward()

    return {
        "decoder by plain PyTorch, forward and backward": lambda: gradient_by_plain_torch(plain, x, z),
        "direction": lambda: made["informed"].direction(encoded["informed"], z, torch.tensor(0.9)),
        **{f"{name} chain, forward": lambda name=name: forward(name) for name in made},
        **{f"{name} chain, forward and backward": lambda name=name: both(name) for name in made},
    }


def _detached(part: torch.Tensor | None) -> torch.Tensor | None:
    return None if part is None else part.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    found = time_together(providers(options.rows, options.steps), torch.device("cpu"), seconds=options.seconds)
    plain = found["decoder by plain PyTorch, forward and backward"].median
    print(f"{options.rows} rows, {options.steps} steps, all of them informed or none, {torch.get_num_threads()} thread(s); medians in ms")
    for name, timing in found.items():
        print(f"{timing.median:9.3f}  {name}")
    for mode in ("forward", "forward and backward"):
        step = (found[f"informed chain, {mode}"].median - found[f"blind chain, {mode}"].median) / options.steps
        print(f"{step:9.3f}  what an informed step adds, {mode}: {step / plain:.2f} decoder passes by plain PyTorch")


if __name__ == "__main__":
    main()
