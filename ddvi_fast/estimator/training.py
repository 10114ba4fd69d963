"""Configuration and training of the estimator's model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ddvi_fast.config.names import check_choice, split, values_of
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.loop import Callback, train
from ddvi_fast.engine.progress import Display, display
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Posterior
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.mapping import updated
from ddvi_fast.recipes.settings import check_settings

# The settings of method=ddvi_clustering; `config/conf/method/ddvi_clustering.yaml` has the same.
CLUSTERING = {
    "method.name": "ddvi_clustering",
    "method.task": "clustering",
    "method.coordinates": "latent",
    "method.num_samples": 4,
    "method.reweighted": True,
    "method.sleep.data": False,
    "method.clustering.base_scale": 0.06,
    "method.clustering.eta": 0.75,
    "recipe.epochs": 300,
    "recipe.batch_size": 256,
    "recipe.lr": 2e-3,
    "recipe.prior_blur": 2.0,
    "recipe.prior_blur_fraction": 0.8,
    "recipe.denoiser_lr": 1.0,
    "recipe.schedule_lr": 10.0,
}
_PRIOR_NAMES = {"square": "less_noisy_square"}  # where the setting `prior` and the name of the prior differ
_LIKELIHOOD_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gaussian": lambda width: {"scale": 0.5, "learn_scale": True, "width": width},
    "bernoulli": lambda width: {},
    "binomial": lambda width: {"total": 2},
}


def configure(parameters: Mapping[str, Any], seed: int, dataset: Dataset) -> Config:
    """The configuration of an estimator.

    Args:
        parameters: Parameters of the estimator, as `get_params` returns them.
        seed: Seed of weights, order and noise (int).
        dataset: The data set to fit.

    Raises:
        InputError: Settings that do not exist, or do not apply to the method.
    """
    clusters, size, likelihood = parameters["n_clusters"], parameters["n_components"], parameters["likelihood"]
    prior = check_choice("prior", parameters["prior"], ("auto",))
    if prior == "auto":
        prior = "pinwheel" if clusters is None and size == 2 else "gaussian"
    chosen = {
        "epochs": "recipe.epochs",
        "batch_size": "recipe.batch_size",
        "learning_rate": "recipe.lr",
        "coordinates": "method.coordinates",
        "num_steps": "method.chain.num_steps",
    }
    stated = as_settings(parameters["settings"])
    config = updated(
        Config(),
        {
            **({} if clusters is None else {**CLUSTERING, "method.clustering.num_clusters": clusters}),
            "prior.name": _PRIOR_NAMES.get(prior, prior),
            "dataset.likelihood": likelihood,
            "dataset.likelihood_options": _LIKELIHOOD_OPTIONS[likelihood](dataset.num_dimensions),
            "dataset.encoder.hidden": parameters["hidden"],
            "dataset.decoder.hidden": parameters["hidden"],
            "latent_dim": size,
            "seed": seed,
            "device": parameters["device"],
            **{name: parameters[key] for key, name in chosen.items() if parameters[key] is not None},
            **stated,
        },
    )
    check_settings(stated, config)
    config.recipe.batch_size = min(config.recipe.batch_size, dataset.size())  # all rows of a small matrix are one batch
    return config


def as_settings(settings: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Further settings of the estimator by name, from a mapping or from strings ``name=value`` as on the command line.

    Raises:
        InputError: A string without ``=``, an unknown setting, or a value of another type.

    Example:
        >>> as_settings(("recipe.lr=1e-3", "method.sleep.loss=huber", "recipe.match_prior=false"))
        {'recipe.lr': 0.001, 'method.sleep.loss': 'huber', 'recipe.match_prior': False}
    """
    if isinstance(settings, Mapping):
        return dict(settings)
    found: dict[str, Any] = {}
    for setting in settings:
        found |= values_of(*split(setting, "settings"))
    return found


def fit_model(config: Config, dataset: Dataset, verbose: bool) -> tuple[LatentVariableModel, Posterior, list[float]]:
    """Train; returns model, posterior, and minus the bound averaged over each epoch."""
    dataset = dataset.to(config.device)
    experiment = build(config, dataset)
    steps = sum(phase.num_steps(num_batches(dataset.size(), config.recipe.batch_size)) for phase in experiment.phases)
    with _progress(steps, verbose) as watch:
        train(
            experiment.phases, dataset, config.recipe.batch_size, config.seed,
            lambda objective, optimisation: Engine(objective, optimisation, config.device, precision=config.precision, exchange=False),
            [watch],
        )  # fmt: skip
    experiment.eval()
    return experiment.model, experiment.posterior, watch.losses


class _Watch(Callback):
    """Callback that averages minus the bound over each epoch and updates the progress bar."""

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
