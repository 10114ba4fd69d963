"""From the estimator's parameters to a configuration, and from that to a fitted model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.config.compose import compose
from ddvi_fast.config.names import check_choice
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine.base import Engine
from ddvi_fast.engine.local import LocalEngine
from ddvi_fast.engine.loop import train
from ddvi_fast.engine.progress import Display, display
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.settings import check_settings


def configure(parameters: Mapping[str, Any], seed: int, dataset: Dataset) -> Config:
    """The configuration of an experiment that an estimator's parameters stand for.

    Raises:
        InputError: settings that do not exist or fit.
    """
    clusters, size = parameters["n_clusters"], parameters["n_components"]
    prior = check_choice("prior", parameters["prior"], ("auto",))
    if prior == "auto":
        prior = "pinwheel" if clusters is None and size == 2 else "gaussian"
    widths = "[" + ",".join(map(str, parameters["hidden"])) + "]"
    chosen = {"epochs": "recipe.epochs", "batch_size": "recipe.batch_size", "learning_rate": "recipe.lr", "num_steps": "method.chain.num_steps"}
    overrides = [
        f"method={'ddvi' if clusters is None else 'ddvi_clustering'}",
        f"prior={prior}",
        f"dataset.likelihood={parameters['likelihood']}",
        f"dataset.encoder.hidden={widths}",
        f"dataset.decoder.hidden={widths}",
        f"latent_dim={size}",
        f"seed={seed}",
        f"device={parameters['device']}",
        *([] if clusters is None else [f"method.clustering.num_clusters={clusters}"]),
        *(f"{name}={parameters[key]}" for key, name in chosen.items() if parameters[key] is not None),
        *_LIKELIHOOD_OPTIONS[parameters["likelihood"]](dataset.num_dimensions),
        *parameters["settings"],
    ]
    config = compose(overrides)
    check_settings([setting.partition("=")[0] for setting in parameters["settings"]], config)
    _checks.require(config.recipe.restarts == 1, "settings", "recipe.restarts=1", f"recipe.restarts={config.recipe.restarts}")
    # All rows of a small matrix are one batch.
    config.recipe.batch_size = min(config.recipe.batch_size, dataset.size())
    return config


_LIKELIHOOD_OPTIONS = {
    "gaussian": lambda width: [
        "dataset.likelihood_options.scale=0.5", "dataset.likelihood_options.learn_scale=true", f"dataset.likelihood_options.width={width}"
    ],
    "bernoulli": lambda width: [],
    "binomial": lambda width: ["dataset.likelihood_options.total=2"],
}  # fmt: skip


def fit_model(config: Config, dataset: Dataset, verbose: bool) -> tuple[LatentVariableModel, Diffusion, list[float]]:
    """Train; returns model, posterior and minus the bound, the mean over each epoch."""
    dataset = dataset.to(config.device)
    experiment = build(config, dataset)
    steps = sum(phase.num_steps(num_batches(dataset.size(), config.recipe.batch_size)) for phase in experiment.phases)
    with _progress(steps, verbose) as watch:
        train(
            experiment.phases, dataset, config.recipe.batch_size, config.seed,
            lambda objective, optimisation: LocalEngine(objective, optimisation, config.device, precision=config.precision), watch,
        )  # fmt: skip
    experiment.model.eval()
    experiment.posterior.eval()
    return experiment.model, experiment.posterior, watch.losses


class _Watch:
    """Averages minus the bound over each epoch, and shows how far training is."""

    def __init__(self, shown: Display) -> None:
        self.losses: list[float] = []
        self._shown, self._sum, self._count = shown, 0.0, 0

    def step(self, step: int, phase: str, epoch: float, terms: Mapping[str, Tensor]) -> None:
        self._sum = self._sum + terms["reconstruction"] + terms.get("kl", 0.0)
        self._count += 1
        self._shown.update(step, phase, {})

    def epoch(self, step: int, phase: str, epoch: int, engine: Engine) -> None:
        self.losses.append(float(self._sum) / self._count)
        self._shown.update(step, phase, {"loss": self.losses[-1]})
        self._sum, self._count = 0.0, 0


@contextmanager
def _progress(steps: int, verbose: bool) -> Iterator[_Watch]:
    shown = display("on" if verbose else "off", sys.stderr, steps)
    try:
        yield _Watch(shown)
    finally:
        shown.close()
