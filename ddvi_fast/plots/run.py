"""Pictures of a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import metrics, plots
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.plots.registry import colors_of, further_pictures
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.class_conditional import ClassConditional, draw_classes
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws
from ddvi_fast.training.evaluate import draws_of_test_set, sample_prior

_GRID = 20  # decoded images along each latent axis


@torch.no_grad()
def draw_run(config: Config, experiment: Experiment, dataset: Dataset, folder: Path, records: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw the pictures of a run and replace earlier ones.

    Every run has its loss terms. With two latent dimensions there are also the latents beside the prior, a grid of decoded images, the
    trajectory of a diffusion posterior, and whatever is registered for the data set (see `plots.registry`).

    Args:
        config: Configuration of the run.
        experiment: Trained model and posterior.
        dataset: Data set of the run, on the device of the experiment.
        folder: Folder of the pictures.
        records: Records of the run's metrics file.

    Returns:
        Paths of the pictures.
    """
    model, posterior = experiment.model, experiment.posterior
    title = f"{dataset.name}, {config.method.name}, {config.prior.name} prior, seed {config.seed}"
    paths = [plots.loss_terms(folder / "loss_terms.png", records, title, overwrite=True)]
    if model.prior.dim != 2:
        return paths
    x, labels = dataset.inputs(split="test"), dataset.test_labels
    draws = draws_of_test_set(config)
    prior_samples, prior_labels = sample_prior(config, model)
    latents = metrics.encode(posterior, x, draws)
    colors = colors_of(config.dataset.name, config, dataset)
    shown = prior_labels if colors is None else None  # classes of the prior have colors of their own, which are not those of the labels
    look = {"class_names": dataset.class_names or None, "class_colors": colors, "overwrite": True}
    paths.append(plots.latents(folder / "latents.png", latents, labels, prior_samples, shown, title, **look))
    if len(dataset.input_shape) > 1:
        paths.append(_decoded(model, dataset, prior_samples, folder, title))
    paths += further_pictures(config.dataset.name)(config, experiment, dataset, folder, title)
    if isinstance(posterior.family if isinstance(posterior, ClassConditional) else posterior, Diffusion):
        states = _states(posterior, x, draws)
        paths.append(plots.trajectory(folder / "trajectory.png", states, labels, prior_samples, title, **look))
    return paths


def _states(posterior: Diffusion | ClassConditional, x: Tensor, draws: Draws) -> Tensor:
    """States of the chain [T + 1, N, 2], start first, mapped to latents as its last state is."""
    family, encoded, labels = posterior, posterior.encode(x), None
    if isinstance(posterior, ClassConditional):
        labels = draw_classes(encoded.log_probs, 1, draws)
        family, encoded = posterior.family, posterior.family_of_class(encoded, labels)
    u = family.unwhitened(encoded, family.latent_path(encoded, 1, draws))
    z = family.prior.push(u, labels) if family.pushes else u
    return z.reshape(len(z), -1, z.shape[-1])


def _decoded(model: LatentVariableModel, dataset: Dataset, prior_samples: Tensor, folder: Path, title: str) -> Path:
    """Draw the decoder's means over a square grid that contains the prior samples."""
    reach = float(prior_samples.abs().max())
    axis = torch.linspace(-reach, reach, _GRID, dtype=torch.float32, device="cpu")
    z = torch.cartesian_prod(axis.flip(0), axis).flip(1).to(next(model.decoder.parameters()))
    images = model.likelihood.mean(model.decoder(z)).view(-1, *dataset.input_shape)
    return plots.decoded_grid(folder / "decoded.png", images, title, columns=_GRID, bounds=(-reach, reach), overwrite=True)
