"""Configuration and training of the estimator's model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.config.names import check_choice, read
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine.callbacks import BOUND
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.loop import Callback, train
from ddvi_fast.engine.progress import Display, display
from ddvi_fast.estimator.features import STANDARDISE
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Posterior
from ddvi_fast.precision import emulation
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.length import fitted_to_size, tell_smaller_batches
from ddvi_fast.recipes.mapping import plain, updated
from ddvi_fast.recipes.settings import check_settings
from ddvi_fast.standardization import tell
from ddvi_fast.training.honoured import check_honoured

# The settings of method=ddvi_clustering; `config/conf/method/ddvi_clustering.yaml` has the same.
CLUSTERING = {
    "method.name": "ddvi_clustering",
    "method.task": "clustering",
    "method.coordinates": "latent",
    "method.num_samples": 4,
    "method.reweighted": True,
    "method.sleep.data": False,
    "method.clustering.base_scale": None,
    "method.clustering.eta": None,
    "recipe.epochs": 300,
    "recipe.min_steps": 2000,
    "recipe.batch_size": 256,
    "recipe.lr": 2e-3,
    "recipe.prior_blur": 2.0,
    "recipe.prior_blur_fraction": 0.8,
    "recipe.denoiser_lr": 1.0,
    "recipe.schedule_lr": 10.0,
}
LIKELIHOODS = ("gaussian", "bernoulli", "binomial")
OUTPUTS = ("mean", "sample")
MISSING_CALLS = ("mean", "least_squares")
# What `settings` may state, the settings that have a parameter of the estimator, and those of evaluations and checkpoints, which it does not have.
_SETTINGS = ("dataset.encoder", "dataset.decoder", "dataset.likelihood_options", "prior", "method", "recipe", "precision")
_PARAMETERS = {
    "prior.name": "prior", "prior": "prior", "method": "n_clusters", "method.clustering.num_clusters": "n_clusters", "latent_dim": "n_components",
    "seed": "random_state", "device": "device", "dataset.likelihood": "likelihood", "progress": "verbose", "epochs": "epochs",
}  # fmt: skip
_UNUSED = ("recipe", "prior.resolution", "recipe.average_decay", "recipe.defects.dropout_at_evaluation", "method.name")
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
    _check_stated(stated, {setting: parameter for parameter, setting in chosen.items() if parameters[parameter] is not None})
    config = updated(
        Config(),
        {
            **({} if clusters is None else {**CLUSTERING, "method.clustering.num_clusters": clusters}),
            **({} if parameters["epochs"] is None else {"recipe.min_steps": 0}),  # so many epochs and no more
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
    check_honoured(stated, config)
    method, task = config.method, "unsupervised" if clusters is None else "clustering"
    _checks.require(method.posterior == "diffusion", "settings", "method.posterior=diffusion", method.posterior)
    _checks.require(method.task == task, "settings", f"method.task={task}, by n_clusters", method.task)
    _checks.require(not method.clustering.latent, "settings", "method.clustering.latent=false", "true")
    asked, config = config.recipe.batch_size, fitted_to_size(config, dataset.size())
    if parameters["batch_size"] is not None or "recipe.batch_size" in stated:
        tell_smaller_batches(asked, config.recipe.batch_size, dataset.size())
    config.recipe.batch_size = min(config.recipe.batch_size, dataset.size())  # all rows of a small matrix are one batch
    return config


def checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an estimator as Python's own numbers, text and tuples, each checked by itself; `random_state` is left as it is.

    Raises:
        InputError: A parameter that is not possible.
    """
    given = {name: value if name in ("device", "random_state") else plain(value) for name, value in parameters.items()}
    for name, valid in (("likelihood", LIKELIHOODS), ("output", OUTPUTS), ("standardise", STANDARDISE), ("missing", MISSING_CALLS)):
        _checks.choice(given[name], valid, name)
    check_choice("prior", given["prior"], ("auto",))
    for name in ("n_components", "n_principal", "n_samples", "n_clusters", "num_steps", "epochs", "batch_size"):
        if given[name] is not None or name in ("n_components", "n_principal", "n_samples"):
            given[name] = _checks.integer(given[name], name, at_least=1)
    if given["learning_rate"] is not None:
        given["learning_rate"] = _checks.number(given["learning_rate"], "learning_rate", above=0)
    given["hidden"] = _checks.integers(given["hidden"], "hidden", at_least=1)
    settings = given["settings"]
    given["settings"] = settings if isinstance(settings, (str, Mapping)) or not isinstance(settings, Iterable) else tuple(settings)
    verbose = bool(_checks.instance(given["verbose"], (bool, int), "verbose", "true or false"))
    return {**given, "device": str(_checks.device(given["device"])), "verbose": verbose}


def _check_stated(stated: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
    """Check that the estimator has the settings that were stated, and that no parameter says the same."""
    for name in stated:
        if (parameter := {**_PARAMETERS, **chosen}.get(name)) is not None:
            _checks.fail("settings", f"{name} as the parameter {parameter}", "a setting")
        known = name in _SETTINGS or name.startswith(tuple(f"{group}." for group in _SETTINGS))
        _checks.require(known and name not in _UNUSED, "settings", f"settings of the estimator ({', '.join(_SETTINGS)})", name)


def as_settings(settings: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Further settings of the estimator by name, from a mapping or from strings ``name=value`` as on the command line.

    Raises:
        InputError: A string without ``=``, an unknown setting, a value of another type, or a setting with two values.

    Example:
        >>> as_settings(("recipe.lr=1e-3", "method.sleep.loss=huber", "recipe.match_prior=false"))
        {'recipe.lr': 0.001, 'method.sleep.loss': 'huber', 'recipe.match_prior': False}
    """
    expected = "a mapping, or strings name=value"
    if isinstance(settings, Mapping):
        for name in settings:
            _checks.instance(name, str, "settings", "names of settings")
        return dict(settings)
    _checks.require(isinstance(settings, Iterable) and not isinstance(settings, str), "settings", expected, settings)
    return read([_checks.instance(setting, str, "settings", expected) for setting in settings], "settings")


def fit_model(config: Config, dataset: Dataset, verbose: bool) -> tuple[LatentVariableModel, Posterior, list[float]]:
    """Train; returns model, posterior, and minus the bound averaged over each epoch."""
    if told := emulation(config.precision, torch.device(config.device)):
        tell(told)
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
        self._sum = self._sum + sum(terms[name] for name in BOUND if name in terms)
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
