"""Training of a posterior of places on random calls of the fitted people."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.genomes.place_calls import thinned
from ddvi_fast.genomes.place_features import GRAIN, Features, features
from ddvi_fast.genomes.place_reference import Panel, Tiles, tiles_of
from ddvi_fast.genomes.places import Places, undo
from ddvi_fast.inference import Architecture, FittedPosterior, Model, Training, fit_posterior
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.base import draw_start
from ddvi_fast.rng import Draws

_PARTS = 6  # parts of the fitted people; each is read by a reference of the others
_FEWEST = 0.005  # smallest share of calls
_WHOLE, _HAPLOID = 0.12, 0.4  # share of the examples with all calls, and with one allele read
_ROWS = 4096  # examples at a time
_CHAIN = Architecture(num_steps=6, start=0.6, end=4.0)  # with a last step that is wide enough for a smooth density
_TRAINING = {"batch_size": 512, "lr": 2e-3}
_TRIED = (1 / 16, 1 / 4, 1.0)  # shares of the steps of which held-out people choose
_PATHS = 100  # of the chain, when they do
_WIDER = 2.0  # width of the Gaussian beside the chain, in widths of the trained one
_BLOCK = 1 << 18  # states of chains at a time


class Examples(NamedTuple):
    """Random calls of the fitted people.

    Attributes:
        read: Features, with their frames.
        inside: Places in these frames, float64 [R, 2].
        part: Part of the people to which the person belongs, int64 [R].
    """

    read: Features
    inside: Tensor
    part: Tensor

    def of(self, chosen: Tensor) -> Examples:
        """The examples with `chosen`, bool [R]."""
        return Examples(Features(*(value[chosen] for value in self.read)), self.inside[chosen], self.part[chosen])

    def places(self) -> Tensor:
        """Places, float64 [R, 2]."""
        return self.read.mean + _placed(self.read.factor, self.inside)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Places in the frames [n, 2], with the grain of places, and features [n, F] of random examples."""
        chosen = torch.randint(len(self.inside), (number,), device="cpu")
        grain = GRAIN * torch.randn(number, 2, dtype=torch.float64, device="cpu")
        return (self.inside[chosen] + undo(self.read.factor[chosen], grain)).float(), self.read.x[chosen]


def examples(panel: Panel, repeats: int, seed: int) -> Examples:
    """Random calls of each of N people, `repeats` times.

    The loadings and frequencies by which a person is read, and the place, are those of other people: the components of all people and the
    frequencies of a cluster have a part of each person's own noise, which a new person does not have.
    """
    part = torch.arange(len(panel.rows), device="cpu") % _PARTS
    part = part[torch.randperm(len(part), generator=torch.Generator().manual_seed(seed), device="cpu")]
    found = [_of_part(panel, part == number, repeats, Draws(seed, number << 32)) for number in range(_PARTS) if (part == number).any()]
    read, inside = zip(*found, strict=True)
    parts = torch.repeat_interleave(torch.tensor([len(each) for each in inside], device="cpu"))
    return Examples(Features(*(torch.cat(values) for values in zip(*read, strict=True))), torch.cat(inside), parts)


def _of_part(panel: Panel, chosen: Tensor, repeats: int, draws: Draws) -> tuple[Features, Tensor]:
    reference, rows = panel.reference(~chosen), panel.rows[chosen.numpy()]
    places = reference.places(reference.summarize(tiles_of(panel.store, rows), len(rows)))
    each, found = max(1, _ROWS // len(rows)), []
    for first in range(0, repeats, each):
        count = min(each, repeats - first) * len(rows)
        options = _options(count, draws.advance(first * len(rows)))
        codes = thinned_tiles(tiles_of(panel.store, np.tile(rows, count // len(rows))), *options, draws.advance(first * len(rows)))
        found.append(features(reference, reference.summarize(codes, count)))
    read = Features(*(torch.cat(values) for values in zip(*found, strict=True)))
    return read, undo(read.factor, places.repeat(repeats, 1) - read.mean)


def _options(count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Share of calls of some examples, log-uniform, and whether one allele is read."""
    u = rng.uniform(draws, (count, 3), rng.TIME)
    return torch.where(u[:, 1] < _WHOLE, 1.0, torch.exp(math.log(_FEWEST) * u[:, 0])), u[:, 2] < _HAPLOID


def thinned_tiles(tiles: Tiles, shares: Tensor, haploid: Tensor, draws: Draws) -> Tiles:
    """Tiles of which random codes are kept, see `place_calls.thinned`."""
    return lambda first, count: thinned(tiles(first, count), shares, haploid, draws.importance(first))


class Fitted(NamedTuple):
    """The Gaussian of a frame in the features' frame, and the chain in its own: places are ``frame(gaussian(chain))``."""

    gaussian: FittedPosterior
    chain: FittedPosterior


class Steps(NamedTuple):
    """Numbers of steps of the training of the Gaussian, and of the chain."""

    gaussian: int
    chain: int


def fit(given: Examples, steps: Steps, seed: int) -> Fitted:
    """Train the Gaussian, and then the chain in the Gaussian as a frame, by maximum likelihood of the places of the examples."""
    gaussian = _trained(given, Architecture(family="gaussian"), steps.gaussian, seed)
    return Fitted(gaussian, _trained(_inside(given, gaussian), _CHAIN, steps.chain, seed))


def chosen_steps(given: Examples, steps: int, resolution: float, seed: int) -> Steps:
    """The numbers of steps, up to `steps`, after which the places of a part of the people, who are held out of the training, are most probable.

    Networks that see the same few people again and again learn their places by heart, and state less and less uncertainty.
    """
    held = given.part == given.part.max()
    kept, others = given.of(~held), given.of(held)
    numbers = sorted({max(1, round(share * steps)) for share in _TRIED})
    draws = Draws(seed).lane("held_out")

    def score(fitted: Fitted, paths: int) -> float:
        found = conditional(fitted, others.read, paths, resolution, draws)
        called = torch.zeros(len(others.inside), dtype=torch.float64, device="cpu")
        return float(Places(np.arange(len(called)), found.centres, found.factor, called, found.wide).log_prob(others.places()).mean())

    gaussians = [_trained(kept, Architecture(family="gaussian"), number, seed) for number in numbers]
    best = int(np.argmax([score(Fitted(each, each), 0) for each in gaussians]))
    inner = _inside(kept, gaussians[best])
    chains = [Fitted(gaussians[best], _trained(inner, _CHAIN, number, seed)) for number in numbers]
    return Steps(numbers[best], numbers[int(np.argmax([score(each, _PATHS) for each in chains]))])


def _trained(given: Examples, architecture: Architecture, steps: int, seed: int) -> FittedPosterior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of columns that are standardized by quantiles
        training = Training(steps=steps, **_TRAINING)
        return fit_posterior(Model(simulate=given.draw), architecture=architecture, training=training, seed=seed)


def _inside(given: Examples, gaussian: FittedPosterior) -> Examples:
    """The examples in the frames of the trained Gaussian."""
    (mean, factor), read = gaussian_of(gaussian, given.read.x), given.read
    frame = read._replace(mean=read.mean + _placed(read.factor, mean), factor=read.factor @ factor)
    return given._replace(read=frame, inside=undo(factor, given.inside - mean))


@torch.no_grad()
def gaussian_of(fitted: FittedPosterior, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [R, 2] and lower triangular factor [R, 2, 2] of a fitted Gaussian, or of the frame of a chain, float64."""
    encoded, whitening = fitted.posterior.encode(x), fitted.whitening
    scale = torch.exp(0.5 * encoded.log_var.double())
    return whitening.shift.double() + encoded.mean.double() @ whitening.factor.double().T, whitening.factor.double() * scale.unsqueeze(1)


@torch.no_grad()
def last_means(fitted: FittedPosterior, x: Tensor, num_paths: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Means [S, R, 2] of the last step of `num_paths` chains, and the factors [R, 2, 2] of its covariance, float64.

    The density of the chain is the mean of these Gaussians over its paths.
    """
    chain, parts = fitted.posterior, []
    assert isinstance(chain, Diffusion)
    table, (shift, factor) = chain.coefficients(), gaussian_of(fitted, x)
    for first in range(0, len(x), step := max(1, _BLOCK // num_paths)):
        encoded = chain.encode(x[first : first + step])
        source = draws.advance(first)
        states = chain.run(encoded, draw_start(*chain.start(encoded), num_paths, source), draws=source, return_trajectory=True).trajectory
        wide = encoded._replace(context=encoded.context.expand(num_paths, -1, -1))
        parts.append(chain.step_mean(wide, states[-2], 0, table).double())
    means = torch.cat(parts, 1)
    return shift + _placed(factor, means), factor * table[0, 2].double()


class Conditional(NamedTuple):
    """Arguments of `Places`: centers [S, R, 2] and factors [R, 2, 2], and the further Gaussian of a chain."""

    centres: Tensor
    factor: Tensor
    wide: tuple[Tensor, Tensor] | None


def conditional(fitted: Fitted, read: Features, num_paths: int, resolution: float, draws: Draws) -> Conditional:
    """Mixture of the chain with a Gaussian of twice the width, or the Gaussian alone for `num_paths` = 0, with the error `resolution` added."""
    mean, inner = gaussian_of(fitted.gaussian, read.x)
    centre, factor = read.mean + _placed(read.factor, mean), read.factor @ inner
    if not num_paths:
        return Conditional(centre.unsqueeze(0), _widened(factor, resolution), None)
    means, narrow = last_means(fitted.chain, read.x, num_paths, draws)
    return Conditional(centre + _placed(factor, means), _widened(factor @ narrow, resolution), (centre, _widened(_WIDER * factor, resolution)))


def _placed(factor: Tensor, inside: Tensor) -> Tensor:
    return torch.einsum("nij,...nj->...ni", factor, inside)


def _widened(factor: Tensor, resolution: float) -> Tensor:
    """Factors of the covariances of Gaussians with a further error."""
    return torch.linalg.cholesky(factor @ factor.mT + resolution**2 * torch.eye(2, dtype=torch.float64, device="cpu"))
