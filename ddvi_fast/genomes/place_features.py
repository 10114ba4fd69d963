"""Features of a person for a posterior of places: summaries of the calls, in a Gaussian frame that is nearly the posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast.genomes.place_reference import Clusters, Reference, Summary
from ddvi_fast.genomes.places import undo

GRAIN = 3e-4  # standard deviation that every place has at least, in units of places
_SCORES = 4  # components of the least-squares scores in the frame
_SETTLED = 100.0  # alleles after which the likelihoods of clusters, whose people are not alike and whose variants are linked, count less
_EVIDENCE = 0.5  # exponent of the likelihood of the least-squares scores under a cluster
_TEMPERATURES = (1.0, 3.0, 0.3)  # of these likelihoods; the first one makes the frame
_FAR = 8.0  # largest coordinate of a feature in the frame
_RIDGE = 1e-6  # precision of scores without calls


class Features(NamedTuple):
    """Features [R, F] of R people, float32, with the mean [R, 2] and factor [R, 2, 2] of their frames, float64."""

    x: Tensor
    mean: Tensor
    factor: Tensor


def least_squares(reference: Reference, summary: Summary, count: int) -> tuple[Tensor, Tensor]:
    """Least-squares places of people and the covariances of their Gaussian errors, float64 [R, 2] and [R, 2, 2].

    The error of scores on `count` components is that of the genotypes that the components do not explain. Without missing calls it is 0, because
    the place itself is made of the same genotypes: for the matrix `A` of the products of loadings it is ``noise (A^-1 - I)``, and ``reading A^-1``
    more where one allele is read.
    """
    unit = torch.eye(count, dtype=torch.float64, device="cpu")
    inverse = torch.linalg.inv(summary.normal[:, :count, :count] + _RIDGE * unit)
    place = (inverse @ summary.products[:, :count, None])[:, :2, 0] / reference.unit
    reading = torch.where(summary.haploid, reference.reading, 0.0).double()[:, None, None]
    unexplained, vectors = torch.linalg.eigh((inverse - unit)[:, :2, :2])  # not below 0, but for rounding and the ridge
    unexplained = (vectors * unexplained.clamp(min=0).unsqueeze(1)) @ vectors.mT
    return place, (reference.noise * unexplained + reading * inverse[:, :2, :2]) / reference.unit**2


def predicted(reference: Reference, summary: Summary) -> tuple[Tensor, Tensor]:
    """Mean place [R, 2] and mean scores [R, k] in the Gaussian model of all genotypes (probabilistic principal components)."""
    count = summary.products.shape[1]
    unit, products = torch.eye(count, dtype=torch.float64, device="cpu"), summary.products.unsqueeze(-1)
    of_allele = torch.where(summary.haploid, reference.reading, 0.0).double()[:, None, None]
    total = reference.noise + of_allele
    kept = reference.noise / total  # share of the noise of a call that the genotype has, too
    scores = torch.linalg.solve(torch.diag(1 / reference.variances) + summary.normal / total, products / total)
    place = (unit - kept * summary.normal) @ scores + kept * products
    return place[:, :2, 0] / reference.unit, scores.squeeze(-1)


class _Mixture(NamedTuple):
    """Moments of a mixture of the clusters, given the calls: mean [R, 2], covariance [R, 2, 2] and weights [R, K]."""

    mean: Tensor
    covariance: Tensor
    weights: Tensor


def _mixture(clusters: Clusters, summary: Summary, place: Tensor, error: Tensor, temperature: float) -> _Mixture:
    """Mixture of the clusters, each a Gaussian that is multiplied by the one of the least-squares place."""
    alleles = summary.called * torch.where(summary.haploid, 1.0, 2.0)
    power = (temperature / (1 + alleles / _SETTLED)).clamp_max(1) * torch.where(summary.haploid, 0.5, 1.0)
    both = clusters.covariances + error.unsqueeze(1)
    inverse, apart = torch.linalg.inv(both), place.unsqueeze(1) - clusters.centres
    evidence = -0.5 * torch.einsum("rki,rkij,rkj->rk", apart, inverse, apart) - 0.5 * torch.logdet(both)
    log_weights = summary.log_likelihoods * power.unsqueeze(1) + clusters.shares.log() + _EVIDENCE * evidence
    weights = log_weights.softmax(1)
    gain = clusters.covariances @ inverse
    centres = clusters.centres + torch.einsum("rkij,rkj->rki", gain, apart)
    within = clusters.covariances - gain @ clusters.covariances
    mean = torch.einsum("rk,rki->ri", weights, centres)
    around = centres - mean.unsqueeze(1)
    covariance = torch.einsum("rk,rkij->rij", weights, within + around.unsqueeze(-1) * around.unsqueeze(-2))
    return _Mixture(mean, 0.5 * (covariance + covariance.mT), weights)


def features(reference: Reference, summary: Summary) -> Features:
    """Features of people with a frame: the moments of a mixture of clusters by their binomial likelihoods and the least-squares place.

    The features are the frame itself, other estimates of the place in it, further scores, weights of the clusters at several temperatures of
    their likelihoods, the number of calls, and whether one allele was read. Entries without a call enter none of them.
    """
    grain = GRAIN**2 * torch.eye(2, dtype=torch.float64, device="cpu")
    place, error = least_squares(reference, summary, min(_SCORES, summary.products.shape[1]))
    error = error + grain
    mixtures = [_mixture(reference.clusters, summary, place, error, temperature) for temperature in _TEMPERATURES]
    mean, covariance, weights = mixtures[0]
    factor = torch.linalg.cholesky(covariance + grain)
    expected, scores = predicted(reference, summary)
    spread = _log_deviations(covariance + grain)

    def inside(point: Tensor) -> Tensor:
        return undo(factor, point - mean).clamp(-_FAR, _FAR)

    columns = [mean, spread, factor[:, 1, :1] / factor[:, 1, 1:], inside(place), _log_deviations(error) - spread, inside(expected)]
    columns += [scores[:, 2:] / reference.variances[2:].sqrt(), torch.log1p(summary.called).unsqueeze(1), summary.haploid.double().unsqueeze(1)]
    columns += [weights.sqrt(), mixtures[2].weights.sqrt()]
    for other in mixtures[1:]:
        columns += [inside(other.mean), _log_deviations(other.covariance + grain) - spread]
    return Features(torch.cat(columns, 1).float(), mean, factor)


def _log_deviations(covariance: Tensor) -> Tensor:
    return 0.5 * covariance.diagonal(dim1=1, dim2=2).log()
