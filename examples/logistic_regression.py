"""Bayesian logistic regression of benign tumours on three measurements of 60 of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ddvi_fast.inference import Architecture, FittedPosterior, Training, fit_posterior

ROWS, COLUMNS = 60, (1, 4, 9)  # texture, smoothness, fractal dimension, none of which separates the classes
SCALE = 5.0  # standard deviation of the prior


class LogisticRegression:
    """Weights of standardized features [n, P] and an intercept with a wide Gaussian prior."""

    def __init__(self, features: Tensor) -> None:
        self.design = torch.cat((torch.ones(len(features), 1), (features - features.mean(0)) / features.std(0)), 1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        logits = z @ self.design.T
        log_prior = torch.distributions.Normal(0, SCALE).log_prob(z).sum(-1)
        return log_prior + logsigmoid(torch.where(x > 0.5, logits, -logits)).sum(-1)


def data() -> tuple[Tensor, Tensor]:
    """Return features [60, 3] and labels [60] of scikit-learn's breast cancer data."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return torch.tensor(bunch.data[:ROWS, COLUMNS], dtype=torch.float32), torch.tensor(bunch.target[:ROWS], dtype=torch.float32)


def fit(training: Training = Training(), architecture: Architecture = Architecture(), seed: int = 0) -> FittedPosterior:
    """Fit the posterior of the intercept and the weights."""
    features, labels = data()
    model = LogisticRegression(features)
    return fit_posterior(model, labels, dim=features.shape[1] + 1, training=training, architecture=architecture, seed=seed)


if __name__ == "__main__":
    posterior = fit()
    print(posterior, posterior.importance_sample(), sep="\n")
