"""Metrics of a trained model and posterior on the test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddvi_fast import distributed, evidence, metrics
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.clustering import assign
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.released_scale import decoded
from ddvi_fast.rng import Draws

# Evaluation draws from a seed of its own, so that how long training ran does not change what is drawn here.
EVALUATION_SEED_OFFSET = 1 << 32
_TRAIN, _TEST, _BOUND, _PRIOR = (index << 32 for index in range(4))
_ROWS = 1 << 13  # examples classified at a time
_VOTES = 25  # posterior samples that vote for the cluster of an example


def evaluate(config: Config, experiment: Experiment, dataset: Dataset) -> dict[str, float]:
    """Test figures: bounds and evidence in nats per example; what a family or a latent size does not have is left out."""
    with evaluated(config, experiment):
        return _figures_of_merit(config, experiment, dataset)


@contextmanager
def evaluated(config: Config, experiment: Experiment) -> Iterator[None]:
    """Model and posterior without dropout, or with it where the released code's mistake is asked for."""
    modules = nn.ModuleList([experiment.model, experiment.posterior])
    modules.train(config.recipe.defects.dropout_at_evaluation)
    try:
        with fixed_statistics(modules):
            yield
    finally:
        modules.eval()


@torch.no_grad()
def _figures_of_merit(config: Config, experiment: Experiment, dataset: Dataset) -> dict[str, float]:
    model, posterior = experiment.model, experiment.posterior
    result = _bounds(config, model, posterior, dataset)
    latents = _latents(posterior, dataset.inputs(split="test"), draws_of_test_set(config))
    prior_samples = model.prior.sample(config.evaluation.prior_samples, draws=_draws(config, _PRIOR)).to(latents)
    if dataset.test_labels is not None:
        train_latents = _latents(posterior, dataset.inputs(), _draws(config, _TRAIN))
        result["knn_accuracy"] = metrics.knn_accuracy(train_latents, dataset.labels(), latents, dataset.labels(split="test"))
        if config.method.task != "unsupervised":
            result |= _classes(config, experiment, dataset, train_latents, latents)
    result["latent_nll"] = metrics.latent_nll(latents, prior_samples)
    result["latent_nll_narrow"] = metrics.latent_nll(latents, prior_samples, metrics.PRIOR_BANDWIDTHS)
    if dataset.has_pixel_metric:  # the bandwidths are made for images
        result["mmd"] = _mmd(config, model, prior_samples, dataset)
    return result


def released_clusters(config: Config, train_latents: Tensor, latents: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of the released code's clusters: those of a Gaussian mixture, as many as asked for, fitted to the training set's latents."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(config.method.clustering.num_clusters, random_state=config.seed).fit(train_latents.double().cpu().numpy())
    scores = metrics.cluster_scores(labels, torch.from_numpy(mixture.predict(latents.double().cpu().numpy())))
    return {f"{name}_mixture": score for name, score in scores.items()}


def _classes(config: Config, experiment: Experiment, dataset: Dataset, train_latents: Tensor, latents: Tensor) -> dict[str, float]:
    """Accuracy of q(c | x), or the scores of clusters against the labels, by both rules."""
    x, labels = dataset.inputs(split="test"), dataset.labels(split="test")
    if config.method.task == "clustering":
        clusters = assign(experiment.posterior, experiment.model.prior, x, draws_of_test_set(config), _VOTES)
        return metrics.cluster_scores(labels, clusters) | released_clusters(config, train_latents, latents, labels)
    predicted = torch.cat([experiment.posterior.log_class_probs(part).argmax(-1) for part in x.split(_ROWS)])
    return {"class_accuracy": metrics.accuracy(labels, predicted)}


def _bounds(config: Config, model: LatentVariableModel, posterior: Posterior, dataset: Dataset) -> dict[str, float]:
    options = config.evaluation
    x = dataset.inputs(None if options.limit is None else slice(0, options.limit), "test")
    draws = _draws(config, _BOUND)
    result = _evidence_and_bound(config, model, posterior, x, draws)
    if options.evidence_blur is not None:
        blurred = LatentVariableModel(model.prior.blurred(options.evidence_blur), model.decoder, model.likelihood)
        result |= {f"{name}_blurred": value for name, value in _evidence_and_bound(config, blurred, posterior, x, draws).items()}
    if posterior.has_density:
        result["iwae"] = float(_of_rows(lambda x, draws: metrics.iwae_bound(model, posterior, x, options.iwae_samples, draws), x, draws).mean())
    if posterior.has_density or isinstance(posterior, Diffusion):
        twice = config.recipe.defects.log_var_twice
        result["elbo_released"] = float(_of_rows(lambda x, draws: metrics.elbo_released(model, posterior, x, draws, twice), x, draws).mean())
    return result


def _evidence_and_bound(config: Config, model: LatentVariableModel, posterior: Posterior, x: Tensor, draws: Draws) -> dict[str, float]:
    """The evidence by quadrature, the bound that the posterior gives, and what is between them, as far as there are such."""
    result = {}
    if config.evaluation.evidence and model.prior.dim <= 2:
        exact = _of_rows(lambda x, _: evidence.log_evidence_quadrature(model, x, resolution=config.prior.resolution), x, draws)
        result["evidence"] = float(exact.mean())
    if posterior.has_density:
        bound = _of_rows(lambda x, draws: metrics.elbo(model, posterior, x, config.evaluation.elbo_samples, draws), x, draws)
        result["elbo"], result["elbo_error"] = float(bound.mean()), float(bound.std() / len(bound) ** 0.5)
    if {"evidence", "elbo"} <= result.keys():
        result["gap"] = result["evidence"] - result["elbo"]
    return result


def _latents(posterior: Posterior, x: Tensor, draws: Draws) -> Tensor:
    return _of_rows(lambda x, draws: metrics.encode(posterior, x, draws), x, draws)


def _of_rows(compute: Callable[[Tensor, Draws], Tensor], x: Tensor, draws: Draws) -> Tensor:
    """`compute(x, draws)`, a number for each row of `x`: every process computes its share of the rows, and has them all."""
    mine = distributed.share(len(x))
    return distributed.collect(compute(x[mine], draws.advance(mine.start)), len(x))


def _mmd(config: Config, model: LatentVariableModel, prior_samples: Tensor, dataset: Dataset) -> float:
    """Between decoded prior samples and the test set, as many of each as the smaller has."""
    test = dataset.inputs(split="test")
    return metrics.mmd(model.likelihood.mean(decoded(model, prior_samples[: len(test)], _draws(config, _PRIOR))), test)


def sample_prior(config: Config, model: LatentVariableModel) -> tuple[Tensor, Tensor | None]:
    """Prior samples for pictures, [2000, D], and their classes where these are the data's."""
    draws = _draws(config, _PRIOR)
    labels = model.prior.sample_labels(2000, draws) if model.prior.num_classes and config.method.task != "clustering" else None
    return model.prior.sample(2000, draws=draws, labels=labels), labels


def draws_of_test_set(config: Config) -> Draws:
    """Draws of the posterior samples of the test set, for its metrics and its pictures."""
    return _draws(config, _TEST)


def _draws(config: Config, place: int) -> Draws:
    return Draws(config.seed + EVALUATION_SEED_OFFSET, place)
