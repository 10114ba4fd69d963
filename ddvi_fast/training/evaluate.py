"""Metrics of a trained model and posterior on the test set, or on the validation examples that stand in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed, evidence, metrics
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset, binarize
from ddvi_fast.gap import Gap, split_gap
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.clustering import assign
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.released_scale import decoded
from ddvi_fast.rng import Draws

# Evaluation has a seed of its own, so that the length of training does not change its draws.
EVALUATION_SEED_OFFSET = 1 << 32
GAP_ROWS = 100  # test examples, the first ones, whose gap is split
_TRAIN, _TEST, _BOUND, _PRIOR = (index << 32 for index in range(4))
_ROWS = 1 << 13  # examples classified at a time
_VOTES = 25  # posterior samples that vote for the cluster of an example


def evaluate(config: Config, experiment: Experiment, dataset: Dataset) -> dict[str, float]:
    """Metrics on the test set by name; bounds and evidence in nats per example.

    Metrics that the posterior family or the latent size does not have are left out.
    """
    limit = config.evaluation.limit
    _checks.require(limit is None or limit >= 1, "evaluation.limit", "at least 1, or null", limit)
    with evaluated(config, experiment):
        return _Evaluation(config, experiment, dataset).metrics()


@contextmanager
def evaluated(config: Config, experiment: Experiment) -> Iterator[None]:
    """Context in which model and posterior have no dropout, unless `recipe.defects.dropout_at_evaluation` keeps it."""
    modules = nn.ModuleList([experiment.model, experiment.posterior])
    modules.train(config.recipe.defects.dropout_at_evaluation)
    try:
        with fixed_statistics(modules):
            yield
    finally:
        modules.eval()


def split_of_gap(config: Config, experiment: Experiment, x: Tensor) -> Gap:
    """The gap of data `x` [N, ...] and its parts, with the settings and draws of an evaluation; every process has all rows."""
    options, mine = config.evaluation, distributed.share(len(x))
    draws = Draws(config.seed + EVALUATION_SEED_OFFSET, _BOUND).advance(mine.start)
    sizes = {"resolution": config.prior.resolution if options.evidence else None, "num_samples": options.elbo_samples}
    found = split_gap(experiment.model, experiment.posterior, x[mine], draws=draws, **sizes)
    return Gap(*(distributed.collect(value, len(x)) if isinstance(value, Tensor) else value for value in found))


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of an experiment; every process computes its share of the rows and has all results."""

    config: Config
    experiment: Experiment
    dataset: Dataset

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        model, dataset = self.experiment.model, self.dataset
        result = self._bounds()
        latents = self._latents("test", draws_of_test_set(self.config))
        prior_samples = model.prior.sample(self.config.evaluation.prior_samples, draws=self._draws(_PRIOR)).to(latents)
        if dataset.test_labels is not None:
            train_latents = self._latents("train", self._draws(_TRAIN))
            result["knn_accuracy"] = metrics.knn_accuracy(train_latents, dataset.labels(), latents, dataset.labels(split="test"))
            if self.config.method.task != "unsupervised":
                result |= self._classes(train_latents, latents)
        result["latent_nll"] = metrics.latent_nll(latents, prior_samples)
        result["latent_nll_narrow"] = metrics.latent_nll(latents, prior_samples, metrics.PRIOR_BANDWIDTHS)
        if dataset.has_pixel_metric:  # the bandwidths are made for images
            result["mmd"] = self._mmd(prior_samples)
        return result

    def _bounds(self) -> dict[str, float]:
        options, model, posterior = self.config.evaluation, self.experiment.model, self.experiment.posterior
        x = self.dataset.inputs(None if options.limit is None else slice(0, options.limit), "test")
        result = self._evidence_and_bound(model, x)
        if options.evidence_blur is not None:
            blurred = LatentVariableModel(model.prior.blurred(options.evidence_blur), model.decoder, model.likelihood)
            result |= {f"{name}_blurred": value for name, value in self._evidence_and_bound(blurred, x).items()}
        if options.gap and posterior.has_density:
            found = split_of_gap(self.config, self.experiment, x[:GAP_ROWS])
            result |= {f"gap_{name}": float(value.mean()) for name, value in found.parts().items()}
        if posterior.has_density:
            result["iwae"] = self._mean(lambda x, draws: metrics.iwae_bound(model, posterior, x, options.iwae_samples, draws), x)
            result["nll"] = -result["iwae"]
        if (posterior.has_density and model.prior.has_density) or isinstance(posterior, Diffusion):
            twice = self.config.recipe.defects.log_var_twice
            result["elbo_released"] = self._mean(lambda x, draws: metrics.elbo_released(model, posterior, x, draws, twice), x)
        return result

    def _evidence_and_bound(self, model: LatentVariableModel, x: Tensor) -> dict[str, float]:
        """Evidence by quadrature, ELBO and the gap between them, where they exist."""
        result, options, posterior = {}, self.config.evaluation, self.experiment.posterior
        if options.evidence and model.prior.dim <= 2:
            resolution = self.config.prior.resolution
            result["evidence"] = self._mean(lambda x, _: evidence.log_evidence_quadrature(model, x, resolution=resolution), x)
        if posterior.has_density:
            bound = _of_rows(lambda x, draws: metrics.elbo(model, posterior, x, options.elbo_samples, draws), x, self._draws(_BOUND))
            result["elbo"], result["elbo_error"] = float(bound.mean()), float(bound.std() / len(bound) ** 0.5)
        if {"evidence", "elbo"} <= result.keys():
            result["gap"] = result["evidence"] - result["elbo"]
        return result

    def _classes(self, train_latents: Tensor, latents: Tensor) -> dict[str, float]:
        """Accuracy of q(c | x), or scores of the clusters against the labels by both rules."""
        x, labels, posterior = self.dataset.inputs(split="test"), self.dataset.labels(split="test"), self.experiment.posterior
        if self.config.method.task == "clustering":
            clusters = assign(posterior, self.experiment.model.prior, x, draws_of_test_set(self.config), _VOTES)
            return metrics.cluster_scores(labels, clusters) | released_clusters(self.config, train_latents, latents, labels)
        predicted = torch.cat([posterior.log_class_probs(part).argmax(-1) for part in x.split(_ROWS)])
        return {"class_accuracy": metrics.accuracy(labels, predicted)}

    def _mmd(self, prior_samples: Tensor) -> float:
        """Discrepancy between decoded prior samples and the test set, with as many of each as the smaller has."""
        model, test = self.experiment.model, self.dataset.inputs(split="test")
        return metrics.mmd(model.likelihood.mean(decoded(model, prior_samples[: len(test)], self._draws(_PRIOR))), test)

    def _latents(self, split: str, draws: Draws) -> Tensor:
        """Posterior samples of a split; where pixels are drawn from shades, those of training images are drawn here."""
        drawn = self.config.dataset.binarize and split == "train"

        def latents(x: Tensor, draws: Draws) -> Tensor:
            return metrics.encode(self.experiment.posterior, binarize(x, draws) if drawn else x, draws)

        return _of_rows(latents, self.dataset.inputs(split=split), draws)

    def _mean(self, compute: Callable[[Tensor, Draws], Tensor], x: Tensor) -> float:
        return float(_of_rows(compute, x, self._draws(_BOUND)).mean())

    def _draws(self, place: int) -> Draws:
        return Draws(self.config.seed + EVALUATION_SEED_OFFSET, place)


def released_clusters(config: Config, train_latents: Tensor, latents: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of the released code's clusters, which are the components of a Gaussian mixture fitted to the latents of the training set."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(config.method.clustering.num_clusters, random_state=config.seed).fit(train_latents.double().cpu().numpy())
    scores = metrics.cluster_scores(labels, torch.from_numpy(mixture.predict(latents.double().cpu().numpy())))
    return {f"{name}_mixture": score for name, score in scores.items()}


def sample_prior(config: Config, model: LatentVariableModel) -> tuple[Tensor, Tensor | None]:
    """Prior samples for plots, [2000, D], and their classes where these are the data's."""
    draws = Draws(config.seed + EVALUATION_SEED_OFFSET, _PRIOR)
    labels = model.prior.sample_labels(2000, draws) if model.prior.num_classes and config.method.task != "clustering" else None
    return model.prior.sample(2000, draws=draws, labels=labels), labels


def draws_of_test_set(config: Config) -> Draws:
    """Draws of the posterior samples of the test set, for its metrics and its plots."""
    return Draws(config.seed + EVALUATION_SEED_OFFSET, _TEST)


def _of_rows(compute: Callable[[Tensor, Draws], Tensor], x: Tensor, draws: Draws) -> Tensor:
    """`compute(x, draws)`, one value for each row of `x`; every process computes its share of the rows and has all values."""
    mine = distributed.share(len(x))
    return distributed.collect(compute(x[mine], draws.advance(mine.start)), len(x))
