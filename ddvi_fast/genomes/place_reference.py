"""Tables of the variants from the fitted people, by which others are read: loadings of components, and allele frequencies of clusters.

Two products of the calls with tables of the variants summarize a person: those with the loadings give the least-squares scores and their
covariance, those with log-frequencies the binomial likelihoods of the clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore

TILE = 2048  # variants at a time
_PSEUDO_ALLELES = 2.0  # of the mean frequency, in the frequencies of a cluster
_PSEUDO_PEOPLE = 4.0  # of the mean covariance, in the covariance of a cluster
_EDGE = 1e-4  # least distance of a frequency from 0 and 1
_CLUSTERED = 4  # components by which people are clustered

Tiles = Callable[[int, int], Tensor]


class Summary(NamedTuple):
    """Sums over the calls of R people.

    Attributes:
        products: Sums of standardized genotypes times loadings, float64 [R, k].
        normal: Sums of the products of loadings, float64 [R, k, k].
        log_likelihoods: Binomial log-likelihoods of the clusters, with two alleles a call, nats, float64 [R, K].
        called: Number of calls, float64 [R].
        haploid: Whether there is no heterozygous call, so that one allele was read of each variant, bool [R].
    """

    products: Tensor
    normal: Tensor
    log_likelihoods: Tensor
    called: Tensor
    haploid: Tensor


class Clusters(NamedTuple):
    """Clusters of the fitted people by place: shares [K], centers [K, 2] and covariances [K, 2, 2] of their places, float64."""

    shares: Tensor
    centres: Tensor
    covariances: Tensor


@dataclass(frozen=True)
class Reference:
    """Tables of the variants from some people.

    Args:
        mean, scale: Standardization of the variants, float32 [M].
        loadings: Orthonormal loadings, float32 [M, k].
        frequencies: Frequencies of the counted allele in the clusters, float32 [K, M].
        variances: Variances of the scores, float64 [k].
        noise: Variance of a standardized genotype that the components do not explain.
        reading: Variance that is added where one of the two alleles is read.
        clusters: Places of the clusters.
        unit: Standard deviation of the first score, the unit of places.
    """

    mean: Tensor
    scale: Tensor
    loadings: Tensor
    frequencies: Tensor
    variances: Tensor
    noise: float
    reading: float
    clusters: Clusters
    unit: float

    def summarize(self, tiles: Tiles, rows: int) -> Summary:
        """Summarize `rows` people, whose codes uint8 [rows, m] at the variants from `first` on are ``tiles(first, m)``."""
        (count, size), number = self.loadings.shape, len(self.frequencies)
        upper, lower = torch.triu_indices(size, size)
        of_alleles = torch.zeros(rows, size + number, dtype=torch.float64, device="cpu")
        of_calls = torch.zeros(rows, len(upper) + size + number + 1, dtype=torch.float64, device="cpu")
        heterozygous = torch.zeros(rows, dtype=torch.bool, device="cpu")
        for first in range(0, count, TILE):
            part = slice(first, min(first + TILE, count))
            codes = tiles(first, part.stop - first)
            called = (codes != MISSING).float()
            heterozygous |= (codes == 1).any(1)
            scaled = self.loadings[part] * self.scale[part, None]
            log_odds, log_other = torch.logit(self.frequencies[:, part]).T, 2 * torch.log1p(-self.frequencies[:, part]).T
            outer = self.loadings[part][:, upper] * self.loadings[part][:, lower]
            ones = torch.ones(len(scaled), 1, device="cpu")
            of_alleles += ((codes * called) @ torch.cat((scaled, log_odds), 1)).double()
            of_calls += (called @ torch.cat((outer, self.mean[part, None] * scaled, log_other, ones), 1)).double()
        outer, means, log_other, called = of_calls.split([len(upper), size, number, 1], 1)
        normal = torch.zeros(rows, size, size, dtype=torch.float64, device="cpu")
        normal[:, upper, lower] = normal[:, lower, upper] = outer
        return Summary(of_alleles[:, :size] - means, normal, of_alleles[:, size:] + log_other, called.squeeze(1), ~heterozygous)

    def places(self, summary: Summary) -> Tensor:
        """Places [R, 2] of people by all of their calls: least-squares scores on all components, the first two in units of `unit`."""
        return torch.linalg.lstsq(summary.normal, summary.products.unsqueeze(-1)).solution[:, :2, 0] / self.unit


def tiles_of(store: GenotypeStore, rows: np.ndarray) -> Tiles:
    """Codes of some people of a store."""
    return lambda first, count: torch.from_numpy(store.genotypes(rows, first, count))


class Panel:
    """The fitted people, of whom any part makes a reference.

    Args:
        store: Store of genotypes.
        rows: Indices of the people, N.
        pca: Components that were fitted to them.
        num_clusters: Number of clusters, K.
        seed: Seed of the clusters.
    """

    def __init__(self, store: GenotypeStore, rows: np.ndarray, pca: GenotypePCA, num_clusters: int, seed: int) -> None:
        from sklearn.cluster import KMeans

        self.store, self.rows, self.pca = store, rows, pca
        self.scores = torch.from_numpy(pca.scores_).double()
        self.unit = float(self.scores[:, 0].std(correction=0))
        near = self.scores[:, :_CLUSTERED].numpy()
        self.number = min(num_clusters, len(rows))
        self.cluster = torch.from_numpy(KMeans(self.number, n_init=4, random_state=seed).fit_predict(near)).long()

    def reference(self, kept: Tensor) -> Reference:
        """Reference of the people with `kept`, bool [N]: one step of subspace iteration from the components of all, and their frequencies."""
        pca, kept = self.pca, kept.double()
        mean, scale = torch.from_numpy(pca.mean_), torch.from_numpy(pca.scale_)
        scores, member = self.scores * kept.unsqueeze(1), self._members(kept)
        products = torch.zeros(len(mean), scores.shape[1], dtype=torch.float64, device="cpu")
        counted, called = (torch.zeros(self.number, len(mean), device="cpu") for _ in range(2))
        heterozygous = torch.zeros(len(mean), dtype=torch.float64, device="cpu")
        for part, codes in self._columns():
            there = (codes != MISSING).float()
            counts = codes * there
            values = (counts - mean[part] * there) * scale[part]
            products[part] = values.double().T @ scores
            counted[:, part], called[:, part] = member.T @ counts, 2 * member.T @ there
            heterozygous[part] = ((codes == 1).T.double() @ kept) / (there.T.double() @ kept).clamp_min(1)
        variances = scores.square().sum(0) / kept.sum()
        loadings, turned = torch.linalg.qr(products)
        loadings *= torch.where(turned.diagonal() < 0, -1.0, 1.0)
        total = counted.sum(0) / called.sum(0).clamp_min(1)
        # In place: of a million variants each of these takes 128 MB.
        frequencies = counted.add_(_PSEUDO_ALLELES * total).div_(called.add_(_PSEUDO_ALLELES)).clamp_(_EDGE, 1 - _EDGE)
        varying = scale > 0
        per_person = float((torch.from_numpy(pca.singular_values_**2 / pca.explained_variance_ratio_)[0]) / len(self.rows))
        noise = (per_person - float(variances.sum())) / float(varying.sum())
        reading = float((scale.double().square() * heterozygous)[varying].mean())
        clusters = self._clusters(kept)
        return Reference(mean, scale, loadings.float(), frequencies, variances, noise, reading, clusters, self.unit)

    def _members(self, kept: Tensor) -> Tensor:
        return (torch.nn.functional.one_hot(self.cluster, self.number) * kept.unsqueeze(1)).float()

    def _clusters(self, kept: Tensor) -> Clusters:
        member, places = self._members(kept).double(), self.scores[:, :2] / self.unit
        size = member.sum(0)
        centres = member.T @ places / size.clamp_min(1).unsqueeze(1)
        around = places.unsqueeze(1) - centres
        squares = torch.einsum("nk,nki,nkj->kij", member, around, around)
        covariances = (squares + _PSEUDO_PEOPLE * squares.sum(0) / size.sum()) / (size + _PSEUDO_PEOPLE)[:, None, None]
        return Clusters((size + 0.5) / (size + 0.5).sum(), centres, covariances)

    def _columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Variants and codes [N, m] of each tile."""
        codes = tiles_of(self.store, self.rows)
        for first in range(0, self.store.num_variants, TILE):
            part = slice(first, min(first + TILE, self.store.num_variants))
            yield part, codes(first, part.stop - first)
