"""Scikit-learn estimator of denoising diffusion variational inference."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_random_state, validate_data
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.config.compose import from_dict
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.engine import checkpoint
from ddvi_fast.estimator import features as features_of
from ddvi_fast.estimator.features import Features, Store
from ddvi_fast.estimator.inference import Drawn, draw, responsibilities, rows_at_a_time
from ddvi_fast.estimator.training import OUTPUTS, checked, configure, fit_model
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Posterior
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.mapping import from_mapping
from ddvi_fast.rng import Draws

_FORMAT = "ddvi_fast estimator"
_LATER = ("n_samples", "output", "verbose")  # parameters that are read after the fit, and may be set then


@dataclasses.dataclass(frozen=True)
class Saved:
    """Plain values of a saved model."""

    kind: str
    parameters: dict[str, Any]
    n_features_in: int
    loss_curve: list[float]
    config: dict[str, Any]
    features: str | None = None  # class of the features; folders of earlier versions do not name it
    feature_names_in: list[str] | None = None


class DDVI(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Low-dimensional latents of a matrix under a chosen prior, with a diffusion posterior.

    Training is that of ``ddvi-fast train``. A fitted model is a function of the row: posterior samples of all rows have the same noise.

    Args:
        n_components: Number of latents D (int, default 2).
        prior: Name of the prior: ``"pinwheel"``, ``"swiss_roll_noisy"``, ``"square"``, ``"less_noisy_square"``, ``"gaussian"`` or ``"mixture"``;
            with `n_clusters` the shape around each centre. The default ``"auto"`` is the pinwheel, or the Gaussian with `n_clusters` or if
            `n_components` is not 2.
        n_clusters: Number of centres of the prior to learn, one per cluster; None (default) for the prior without centres, whose own classes
            (the arms of a pinwheel) are then the clusters of `predict`.
        likelihood: ``"gaussian"`` (default) with a learned scale for each column, ``"bernoulli"`` for values in [0, 1], or ``"binomial"`` for
            genotype counts 0, 1 and 2 with NaN for missing calls.
        standardise: Scaling of real data: ``"columns"`` (default) to variance 1 each, ``"matrix"`` by one number (for principal components), or
            ``"none"``.
        n_principal: Number of principal components that represent the genotypes of a packed store, unless `likelihood` is binomial
            (int, default 20).
        missing: Treatment of missing calls by these components, and of variants that a new store does not have: ``"least_squares"``
            (default), or ``"mean"``, which draws a sample with many of them towards the origin.
        coordinates: Coordinates of the posterior, see `posteriors.Posterior`: ``"latent"``, ``"prior"``, ``"encoder"`` or ``"prior+encoder"``;
            None (default) for ``"prior+encoder"``, or ``"latent"`` with `n_clusters`.
        num_steps: Number of steps T of the chain; None (default) for 5.
        hidden: Widths of the hidden layers of encoders and decoder (tuple of int, default (256, 256)).
        epochs: Number of epochs; None (default) for the recipe's.
        batch_size: Rows of a batch; None (default) for the recipe's.
        learning_rate: Peak learning rate of Adam; None (default) for the recipe's.
        n_samples: Posterior samples per row for `transform`, `predict` and `score_samples` (int, default 16).
        output: Output of `transform`: the ``"mean"`` (default) of these samples, or the first ``"sample"``, which follows the prior's shape.
        settings: Further settings of the experiment (`dataset.encoder`, `dataset.decoder`, `dataset.likelihood_options`, `prior`, `method`,
            `recipe`, `precision`): strings ``"recipe.kl.weight=0.5"``, or a mapping ``{"recipe.kl.weight": 0.5}``.
        device: Device of training and inference (default ``"cpu"``).
        random_state: Seed of weights, order and noise (int, default 0); None for one from NumPy's global generator, as in scikit-learn.
        verbose: Whether to show a progress bar (default False).

    A fitted model stays what it is when parameters are set afterwards, but for `n_samples`, `output` and `verbose`, which later calls read.

    Attributes:
        model_: Fitted latent-variable model.
        posterior_: Fitted posterior q(z | x).
        n_features_in_: Number of columns or variants.
        loss_curve_: Minus the bound in nats per row, averaged over each epoch.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(60, 5))
        >>> model = DDVI(n_clusters=2, epochs=3, hidden=(16,), num_steps=3).fit(x)
        >>> model.transform(x).shape, model.predict(x).shape, model.score_samples(x).shape, model.sample(4).shape
        ((60, 2), (60,), (60,), (4, 5))
    """

    def __init__(
        self,
        n_components: int = 2,
        prior: str = "auto",
        *,
        n_clusters: int | None = None,
        likelihood: str = "gaussian",
        standardise: str = "columns",
        n_principal: int = 20,
        missing: str = "least_squares",
        coordinates: str | None = None,
        num_steps: int | None = None,
        hidden: tuple[int, ...] = (256, 256),
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        n_samples: int = 16,
        output: str = "mean",
        settings: tuple[str, ...] | Mapping[str, Any] = (),
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.prior, self.n_clusters, self.likelihood = n_components, prior, n_clusters, likelihood
        self.standardise, self.n_principal, self.missing = standardise, n_principal, missing
        self.coordinates, self.num_steps, self.hidden = coordinates, num_steps, hidden
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.n_samples, self.output, self.settings = n_samples, output, settings
        self.device, self.random_state, self.verbose = device, random_state, verbose

    def fit(self, X: Any, y: None = None, rows: Any = None) -> DDVI:
        """Fit the model.

        Args:
            X: Rows of a matrix [N, P], or a `GenotypeStore`.
            y: Ignored.
            rows: Samples of the store to fit: indices, a mask or a slice (default all). Later calls take any samples of any store, and
                components of those that were not fitted are unshrunk. None for a matrix.

        Returns:
            The fitted estimator.

        Raises:
            InputError: Parameters that do not exist or are not possible, or values outside the support of the likelihood.
            ValueError: A matrix that is not finite, or has fewer than two rows.
        """
        before = dict(self.__dict__)
        try:
            return self._fit(X, rows)
        except BaseException:  # the model of an earlier fit stays whole
            self.__dict__ = before
            raise

    @without_callers_autocast()
    @torch.inference_mode(False)
    def _fit(self, X: Any, rows: Any) -> DDVI:
        parameters = checked(self.get_params(deep=False))
        state = self.random_state
        whole = isinstance(state, numbers.Integral)
        known = whole or state is None or isinstance(state, np.random.RandomState)
        _checks.require(known, "random_state", "an integer, None or a numpy.random.RandomState", state)
        self.seed_ = _checks.integer(state, "random_state", 0, 1 << 64) if whole else int(check_random_state(state).randint(1 << 31))
        self.features_, dataset = self._features(X, rows, parameters)
        self.config_ = configure(parameters, self.seed_, dataset)
        self.model_, self.posterior_, self.loss_curve_ = fit_model(self.config_, dataset, parameters["verbose"])
        self._n_features_out = self.config_.latent_dim
        self._fitted = {**parameters, "random_state": self.seed_}
        return self

    @without_callers_autocast()
    def transform(self, X: Any) -> np.ndarray:
        """Latents of each row, [N, D]: the posterior mean, or one posterior sample (see `output`)."""
        check_is_fitted(self)
        if _checks.choice(self.output, OUTPUTS, "output") == "sample":
            return self._kind(X, torch.cat([drawn.sample.z[0] for drawn in self._drawn(X, 1)]))
        return self._kind(X, torch.cat([drawn.sample.z.mean(0) for drawn in self._drawn(X)]))

    @without_callers_autocast()
    def posterior_samples(self, X: Any, n_samples: int | None = None) -> np.ndarray:
        """Posterior samples of each row, float32 [K, N, D]; K is `n_samples`."""
        check_is_fitted(self)
        return torch.cat([drawn.sample.z for drawn in self._drawn(X, n_samples)], 1).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Most probable cluster of each row, int64 [N]; raises InputError for a prior without classes."""
        return self.cluster_probabilities(X).argmax(1)

    @without_callers_autocast()
    @torch.no_grad()
    def cluster_probabilities(self, X: Any) -> np.ndarray:
        """Probability of each cluster, float64 [N, C]: ``p(c | z)`` averaged over posterior samples."""
        check_is_fitted(self)
        count = self.model_.prior.num_classes
        _checks.require(bool(count), "prior", "one with classes, or n_clusters", f"a {type(self.model_.prior).__name__} prior")
        return torch.cat([responsibilities(self.model_.prior, drawn.sample.z).mean(0) for drawn in self._drawn(X)]).double().cpu().numpy()

    @without_callers_autocast()
    @torch.no_grad()
    def score_samples(self, X: Any) -> np.ndarray:
        """Evidence lower bound of each row in nats, float64 [N], in the units of the data.

        For a packed store, it is the bound of its principal components, or with the binomial likelihood that of the called genotypes.
        """
        check_is_fitted(self)
        bounds = [self._log_weights(drawn).mean(0) for drawn in self._drawn(X)]
        return torch.cat(bounds).double().cpu().numpy() - self.features_.log_volume

    def score(self, X: Any, y: None = None) -> float:
        """Mean of `score_samples`, nats per row."""
        return float(self.score_samples(X).mean())

    @without_callers_autocast()
    @torch.no_grad()
    def sample(self, n_samples: int = 1, seed: int = 0) -> np.ndarray:
        """Samples of the model, float64 [n, P]: ``z ~ p(z)``, ``x ~ p(x | z)``."""
        check_is_fitted(self)
        n_samples, seed = _checks.integer(n_samples, "n_samples", 0), _checks.integer(seed, "seed", 0)
        fantasies = self.model_.simulate(n_samples, Draws(self.seed_ + (seed << 32)))
        return self.features_.back(fantasies.x)

    @without_callers_autocast()
    @torch.no_grad()
    def inverse_transform(self, X: Any) -> np.ndarray:
        """Mean of ``p(x | z)`` for latents [N, D], float64 [N, P]."""
        check_is_fitted(self)
        size = self.config_.latent_dim
        latents = torch.from_numpy(np.array(check_array(_plain(X), dtype=np.float64, ensure_all_finite=False))).float()
        _checks.require(latents.shape[1] == size, "X", f"latents of shape [N, {size}]", latents)
        _checks.finite(latents, "X")
        output = self.model_.decoder(latents.to(self.config_.device))
        return self.features_.back(self.model_.likelihood.mean(output))

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Save the fitted model as a folder of safetensors and JSON; raises InputError if the folder exists, unless `overwrite`."""
        check_is_fitted(self)
        path = _checks.path(path)
        _checks.require(overwrite or not path.exists(), "path", "a new folder", str(path), "overwrite=True replaces a model")
        names = getattr(self, "feature_names_in_", None)
        now = {name: value for name, value in self.get_params(deep=False).items() if name in _LATER}
        state = Saved(
            _FORMAT, checked({**self._fitted, **now}), int(self.n_features_in_), self.loss_curve_,
            dataclasses.asdict(self.config_), features_of.class_name(self.features_), None if names is None else list(names),
        )  # fmt: skip
        tensors = {**checkpoint.module_tensors({"model": self.model_, "posterior": self.posterior_}), **self.features_.tensors()}
        checkpoint.save(path.absolute(), tensors, dataclasses.asdict(state), self.features_.save, earlier=features_of.EARLIER)
        return path

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, device: str = "cpu") -> DDVI:
        """Load a model from the folder that `save` wrote; raises InputError for any other folder."""
        device = str(_checks.device(device))
        path = _checks.path(path)
        tensors, state = checkpoint.load(path, device)
        _checks.require(state.get("kind") == _FORMAT, "path", "a model written by DDVI.save", str(path))
        saved = from_mapping(Saved, state, str(path))
        for name in saved.parameters:
            _checks.choice(name, cls._get_param_names(), f"{path}, parameters")
        made = cls(**{**saved.parameters, "device": device})
        made._fitted = checked(made.get_params(deep=False))
        made.set_params(**made._fitted)
        made.seed_ = _checks.integer(made.random_state, f"{path}, random_state", 0)
        made.n_features_in_, made.loss_curve_ = saved.n_features_in, saved.loss_curve
        if saved.feature_names_in is not None:
            made.feature_names_in_ = np.array(saved.feature_names_in, dtype=object)
        made.features_ = features_of.load(path, {name: value.cpu() for name, value in tensors.items()}, saved.features)
        made.config_ = dataclasses.replace(from_dict(saved.config), device=device)
        made.model_, made.posterior_ = _built(made.config_, made.features_.stand_in())
        checkpoint.load_modules(tensors, {"model": made.model_, "posterior": made.posterior_})
        made._n_features_out = made.config_.latent_dim
        return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.likelihood == "binomial"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _features(self, X: Any, chosen: Any, parameters: Mapping[str, Any]) -> tuple[Features, Dataset]:
        likelihood = parameters["likelihood"]
        if isinstance(X, Store):
            _checks.require(likelihood != "bernoulli", "likelihood", "gaussian or binomial for genotypes", likelihood)
            kept = None if chosen is None else np.arange(len(X))[_checks.rows(chosen, len(X))]
            _checks.require(kept is None or len(kept) > 1, "rows", "at least two samples", chosen)
            self.n_features_in_ = X.num_variants
            self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
            return X.to_features(
                binomial=likelihood == "binomial", num_components=parameters["n_principal"], seed=self.seed_, missing=parameters["missing"],
                rows=kept,
            )  # fmt: skip
        _checks.require(chosen is None, "rows", "None for a matrix, whose rows X[rows] selects", chosen)
        rows = self._rows(X, likelihood, reset=True)
        if likelihood == "binomial":
            return features_of.of_counts(rows)
        return features_of.of_matrix(rows, parameters["standardise"] if likelihood == "gaussian" else "none")

    def _rows(self, X: Any, likelihood: str, reset: bool = False) -> np.ndarray:
        """A checked matrix with values in the support of the likelihood."""
        finite = "allow-nan" if likelihood == "binomial" else True
        rows = validate_data(
            self, _plain(X), reset=reset, dtype=[np.float64, np.float32], ensure_min_samples=2 if reset else 1, ensure_all_finite=finite
        )
        if likelihood != "gaussian":
            top = 1 if likelihood == "bernoulli" else 2
            called = rows[~np.isnan(rows)]
            outside = (called < 0) | (called > top)
            _checks.require(not outside.any(), "X", f"values from 0 to {top} for a {likelihood} likelihood", f"{int(outside.sum())} others")
            broken = likelihood == "binomial" and bool((called != np.round(called)).any())
            _checks.require(not broken, "X", "whole numbers from 0 to 2 for a binomial likelihood", "others")
        return rows

    def _blocks(self, X: Any, rows: int) -> Iterator[Tensor]:
        if isinstance(X, Store):
            for start in range(0, len(X), rows):
                yield self.features_.of_rows(X, np.arange(start, min(start + rows, len(X))), self._fitted["missing"])
            return
        _checks.require(self.features_.of_matrices, "X", "a store of genotypes, as was fitted", "a matrix")
        matrix = self._rows(X, self.config_.dataset.likelihood)
        for start in range(0, len(matrix), rows):
            yield self.features_.of(matrix[start : start + rows])

    @torch.no_grad()
    def _drawn(self, X: Any, num_samples: int | None = None) -> Iterator[Drawn]:
        num_samples = _checks.integer(self.n_samples if num_samples is None else num_samples, "n_samples", 1)
        rows = rows_at_a_time(num_samples)
        yield from draw(self.posterior_, self._blocks(X, rows), num_samples, self.seed_, rows)

    def _log_weights(self, drawn: Drawn) -> Tensor:
        """Log importance weights [K, N] of the samples of a block, in nats."""
        log_prior_ratio = self.posterior_.log_prior_ratio(self.model_.prior, drawn.sample)
        return self.model_.log_likelihood(drawn.x, drawn.sample.z) + log_prior_ratio

    @staticmethod
    def _kind(X: Any, latents: Tensor) -> np.ndarray:
        """Latents in the floating-point type of `X`."""
        single = isinstance(X, Store) or getattr(X, "dtype", None) in (np.float32, torch.float32)
        return latents.cpu().numpy().astype(np.float32 if single else np.float64)


def _plain(X: Any) -> Any:
    """A tensor as an array; anything else but an array with masked values, whose masks scikit-learn ignores, is returned as it is."""
    _checks.require(not np.ma.is_masked(X), "X", "values without a mask", "masked ones")
    if not isinstance(X, Tensor):
        return X
    held = _checks.valued(_checks.tensor(X, "X", floating=False), "X").detach().cpu()
    return (held.float() if held.dtype in (torch.float16, torch.bfloat16) else held).numpy()


def _built(config: Config, dataset: Dataset) -> tuple[LatentVariableModel, Posterior]:
    experiment = build(config, dataset).to(config.device).eval()
    return experiment.model, experiment.posterior
