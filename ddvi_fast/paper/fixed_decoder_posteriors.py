"""The posteriors of the table fixed-decoder, and their training by the evidence bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import data, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine.engine import Engine
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP, take_rows
from ddvi_fast.objectives import Objective, Progress, Terms
from ddvi_fast.posteriors import IAF, Diffusion, FullGaussian, Gaussian, Posterior, Spline
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

ROWS = {
    "encoder": "encoder of the VAE",
    "tuned": "encoder, trained on",
    "full": "Gaussian, full covariance",
    "iaf": "IAF",
    "spline": "spline flow",
    "blind": "diffusion, blind",
    "in-encoder": "diffusion, informed",
    "updated": "Gaussian of the updated frame, untrained",
    "informed": "diffusion, informed, updated frame",
    "optimized": "diagonal Gaussian, optimized per image",
    "optimized-full": "full Gaussian, optimized per image",
    "annealed": "annealed importance sampling",
}
PER_IMAGE = ("optimized", "optimized-full")
NOT_TRAINED = ("encoder", "updated", "annealed")
STEPS, BETA = 8, 0.25  # length of the chains, and their initial betas
UPDATES = 2  # of the frame
IMAGES, SAMPLES = 64, 4  # images in a training step, and samples for each
FEW = 10  # samples for each image in a step of the optimization per image
_CONTEXT, _WIDTH = 32, 128  # size of the context of chains and flows, width of the denoiser


def make(row: str, model: LatentVariableModel, encoder: MLP, x: Tensor, seed: int) -> Posterior:
    """Make the posterior of a row, before its training: the Gaussian of the autoencoder's encoder, or near it.

    Args:
        row: Name of the row.
        model: The model with the frozen decoder.
        encoder: Encoder of the autoencoder, with one hidden layer. It is copied.
        x: Images of the posteriors with parameters for each image.
        seed: Seed of the initial weights (int).
    """
    dim, pixels = model.prior.dim, x.shape[1]
    if row in PER_IMAGE:
        with torch.no_grad():
            table = Table(encoder(x), dim * (dim - 1) // 2 if row == "optimized-full" else 0)
        return Gaussian(table, dim, coordinates="encoder") if row == "optimized" else FullGaussian(table, None, dim)
    width = encoder.output_layer.in_features
    own = MLP(pixels, [width], 2 * dim)
    own.load_state_dict(encoder.state_dict())
    if row in ("encoder", "tuned"):
        return Gaussian(own, dim, coordinates="encoder")
    size = dim * (dim - 1) // 2 if row == "full" else _CONTEXT
    context = MLP(pixels, [width], size, zero_output=row == "full", draws=Draws(seed).importance(3))
    context.layers[0].load_state_dict(encoder.layers[0].state_dict())
    if row == "full":
        return FullGaussian(own, context, dim)
    if row in ("iaf", "spline"):
        options = {"context_dim": size, "draws": Draws(seed).importance(4), "coordinates": "encoder"}
        return IAF(own, context, dim, **options) if row == "iaf" else Spline(own, context, dim, **options)
    informed, updates = STEPS if row in ("in-encoder", "informed") else 0, UPDATES if row in ("updated", "informed") else 0
    denoiser = ResidualMLP(dim, size + (dim if informed else 0), STEPS, _WIDTH, zero_output=True, draws=Draws(seed).importance(4))
    return Diffusion(
        own, denoiser, schedules.make("constant", STEPS, beta=BETA), context_encoder=context, coordinates="encoder",
        informed_steps=informed, frame_updates=updates, target=model if informed or updates else None,
    )  # fmt: skip


class Table(nn.Module):
    """Encoder of fixed rows: free outputs for each of them, which start from those of an encoder [M, 2 D] and zeros."""

    def __init__(self, start: Tensor, zeros: int) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.cat((start, start.new_zeros(len(start), zeros)), 1))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.output


class Bound(Objective):
    """Minus the evidence bound. Term: `bound`, nats.

    Args:
        model: The model.
        posterior: The posterior, which is trained.
        trained: The model if it is trained too, otherwise None.
        num_samples: Samples per row (int, default 1).
    """

    def __init__(self, model: LatentVariableModel, posterior: Posterior, trained: nn.Module | None = None, num_samples: int = 1) -> None:
        super().__init__()
        self.posterior, self.trained, self.num_samples = posterior, trained, num_samples
        self._model = (model,)  # no submodule, so that it is not trained
        self.passes = num_samples  # of the decoder, per row
        if isinstance(posterior, Diffusion):
            self.passes += num_samples * posterior.informed_steps + 2 * posterior.latent_dim * posterior.frame_updates

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        return Terms({"bound": -self.posterior.log_weights(self._model[0], x, self.num_samples, draws).mean(0)}, {"bound": 1.0})


class Budget(NamedTuple):
    """CPU seconds and passes of the decoder of a training."""

    seconds: float
    passes: int

    def share_in(self, spent: Budget) -> float:
        """The fraction of this budget that is spent, the smaller one of both."""
        return min(spent.seconds / self.seconds, spent.passes / self.passes)


def fit(objective: Bound, images: Tensor, rows: int, lr: float, seed: int, fraction: Callable[[Budget], float]) -> Budget:
    """Train on random images, binarized anew in each step, until `fraction` of what was spent is 1.

    Args:
        objective: The bound.
        images: Images of values in [0, 1], [M, P].
        rows: Images per step (int).
        lr: Peak learning rate, which falls to zero along a cosine.
        seed: Seed of the random numbers (int).
        fraction: Function of what was spent.

    Returns:
        What was spent.
    """
    engine = Engine(objective, Optimisation(lr=lr, max_norm=100.0), capture=False, exchange=False)
    spent, start, step = Budget(0.0, 0), time.process_time(), 0
    while (done := fraction(spent)) < 1:
        draws = Draws(seed, step * rows)
        x = data.binarize(take_rows(images, rng.integers(draws, rows, len(images), rng.ORDER)), draws)
        engine.run(x, Progress(done, 1), draws)
        step += 1
        spent = Budget(time.process_time() - start, step * rows * objective.passes)
    return spent


def optimize(model: LatentVariableModel, posterior: Posterior, x: Tensor, steps: int, seed: int) -> Budget:
    """Optimize a posterior with free parameters for each row of `x`, with `FEW` samples in each step; returns what was spent."""
    start, objective = time.process_time(), Bound(model, posterior, None, FEW)
    engine = Engine(objective, Optimisation(lr=0.1, max_norm=None), capture=False, exchange=False)
    for step in range(steps):
        engine.run(x, Progress(step, steps), Draws(seed, step * len(x)))
    return Budget(time.process_time() - start, steps * len(x) * objective.passes)
