"""Time of informed steps against passes of the decoder by plain PyTorch: `python -m bench.studies.informed [--output FILE]`.

The time of a step is the difference between chains with and without informed steps, divided by their number. Everything takes turns in one run, on
one thread, and is measured in processor time, which leaves out what other programs take.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bench import records
from bench.timing import time_together
from ddvi_fast import denoisers, likelihoods, models, networks, posteriors, priors, schedules
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.rng import Draws

CONTEXT = 32
PLAIN = "decoder by plain PyTorch"
HEADINGS = ["decoder", "rows", "T", "decoder pass, ms", "direction, ms", "chain", "blind, ms", "informed, ms", "a step, passes", "T steps / T passes"]
FORMATS = ["", "", "", ".3f", ".3f", "", ".3f", ".3f", ".2f", ".2f"]


class Shape(NamedTuple):
    """Sizes of a decoder, and of the batch and the chain with it."""

    latents: int
    hidden: tuple[int, ...]
    pixels: int
    rows: int
    steps: int

    def __str__(self) -> str:
        return "-".join(map(str, (self.latents, *self.hidden, self.pixels)))


# The decoder of the digits with the samples of a batch, and one of images of 28 x 28 pixels.
SHAPES = (Shape(2, (256, 256), 64, 512, 5), Shape(20, (400,), 784, 128, 4))


def model_and_plain(shape: Shape) -> tuple[models.LatentVariableModel, nn.Sequential]:
    """A model whose decoder is an MLP, and that decoder in plain PyTorch."""
    decoder = networks.MLP(shape.latents, shape.hidden, shape.pixels, draws=Draws(1))
    widths = (shape.latents, *shape.hidden, shape.pixels)
    linear = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
    for layer, own in zip(linear, decoder.layers, strict=True):
        layer.load_state_dict(own.state_dict())
    plain = nn.Sequential(*[part for layer in linear[:-1] for part in (layer, nn.ReLU())], linear[-1]).requires_grad_(False)
    return models.LatentVariableModel(priors.make("gaussian", dim=shape.latents), decoder, likelihoods.make("bernoulli")), plain


def chain(model: models.LatentVariableModel, shape: Shape, informed: int) -> posteriors.Diffusion:
    """A chain whose last `informed` steps see the model."""
    return posteriors.Diffusion(
        networks.MLP(shape.pixels, [400], 2 * shape.latents + CONTEXT, draws=Draws(2)),
        denoisers.ResidualMLP(shape.latents, CONTEXT + (shape.latents if informed else 0), shape.steps, draws=Draws(3)),
        schedules.make("constant", shape.steps, beta=0.3),
        coordinates="encoder",
        informed_steps=informed,
        target=model if informed else None,
    )


def gradient_by_plain_torch(plain: nn.Module, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The gradient of the log joint density for the latents, with operations of PyTorch alone."""
    point = z.detach().requires_grad_()
    likelihood = -nn.functional.binary_cross_entropy_with_logits(plain(point), x, reduction="sum")
    return torch.autograd.grad(likelihood - 0.5 * point.square().sum(), point)[0]


def providers(shape: Shape) -> dict[str, Callable[[], object]]:
    """What is timed, by name: the decoder's pass, a direction, and chains forward and with their backward pass."""
    model, plain = model_and_plain(shape)
    x = model.simulate(shape.rows, Draws(4)).x
    z = torch.randn(shape.rows, shape.latents, generator=torch.Generator().manual_seed(0))
    made = {"blind": chain(model, shape, 0), "informed": chain(model, shape, shape.steps)}
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
        PLAIN: lambda: gradient_by_plain_torch(plain, x, z),
        "direction": lambda: made["informed"].direction(encoded["informed"], z, torch.tensor(0.9)),
        **{f"{name} forward": lambda name=name: forward(name) for name in made},
        **{f"{name} forward and backward": lambda name=name: both(name) for name in made},
    }


def _detached(part: torch.Tensor | None) -> torch.Tensor | None:
    return None if part is None else part.detach()


def measured(shape: Shape, seconds: float) -> list[list[Any]]:
    """The rows of the table for one shape."""
    found = time_together(providers(shape), torch.device("cpu"), seconds=seconds, clock=time.process_time)
    times = {name: timing.median for name, timing in found.items()}
    rows = []
    for mode in ("forward", "forward and backward"):
        blind, informed = times[f"blind {mode}"], times[f"informed {mode}"]
        passes = [difference / (shape.steps * times[PLAIN]) for difference in (informed - blind, informed)]
        rows.append([str(shape), shape.rows, shape.steps, times[PLAIN], times["direction"], mode, blind, informed, *passes])
    return [[round(value, 4) if isinstance(value, float) else value for value in row] for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of measurements of each chain")
    parser.add_argument("--output", type=Path, help="results file, JSON, with the table beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = {
        "kind": records.TABLE_KIND, **environment(), "command": f"python -m bench.studies.informed --seconds {options.seconds:g}",
        "title": "Informed steps against passes of the decoder",
        "about": [
            "", "Medians of processor time on one thread, all in one run, in turns; the machine may be shared. A decoder pass is the gradient of "
            "log p(x, z) for z by plain PyTorch. An informed step takes the difference between the chain whose T steps are all informed and the "
            "blind one, divided by T; the last column is the whole informed chain against T decoder passes.",
        ],
        "headings": HEADINGS, "formats": FORMATS, "rows": [row for shape in SHAPES for row in measured(shape, options.seconds)],
    }  # fmt: skip
    print(records.write(options.output, record) if options.output else records.markdown_of(record))


if __name__ == "__main__":
    main()
