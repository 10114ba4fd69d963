"""The study of an admixture pulse: shares of segments, frequencies of the sources, maximum likelihood, and its table."""

from __future__ import annotations

import numpy as np
import pytest

from bench.studies import pulse


@pytest.fixture(scope="module")
def simulated():
    pytest.importorskip("msprime")
    return pulse.simulate(0, segments=40, group=30, panel=200)


def test_shares_are_those_of_the_pulse(simulated):
    """The mean of 60 genomes of 40 segments, whose standard deviation is at least that of independent segments."""
    assert simulated.shares.min() >= 0 and simulated.shares.max() <= 1
    assert simulated.shares.mean() == pytest.approx(0.7, abs=0.05)
    assert simulated.shares.std() >= 0.8 * (0.7 * 0.3 / 80) ** 0.5


def test_frequencies_are_those_of_the_people_of_the_sources(simulated):
    for source in range(2):
        found = simulated.genotypes[30 * source : 30 * (source + 1)].mean(0) / 2
        assert np.abs(found - simulated.frequencies[source]).mean() < 0.03
    apart = np.abs(simulated.frequencies[0] - simulated.frequencies[1]).mean()
    assert apart > 0.03, "sources that do not differ would test nothing"


def test_variants_of_a_store_keep_their_frequencies(simulated, tmp_path):
    store, frequencies = pulse.stored(simulated, tmp_path / "store")
    codes = store.genotypes(slice(0, 60)).astype(float)
    for source in range(2):
        assert np.abs(codes[30 * source : 30 * (source + 1)].mean(0) / 2 - frequencies[source]).mean() < 0.06
    assert store.samples.labels["population"].tolist() == ["A"] * 30 + ["B"] * 30 + [""] * 30


def test_maximum_likelihood_finds_the_share():
    generator = np.random.default_rng(0)
    frequencies, shares = generator.uniform(0.05, 0.95, (2, 4000)), generator.uniform(0, 1, 20)
    codes = generator.binomial(2, shares[:, None] * frequencies[0] + (1 - shares[:, None]) * frequencies[1])
    assert np.abs(pulse.most_likely(codes, frequencies) - shares).max() < 0.1


def test_a_table_has_the_means_of_the_seeds():
    made_up = {"variants": 3000, "people": 600, "correlation": 0.9, "correlation_ml": 0.91, "rmse_ml": 0.02, "coverage": 0.9, "seconds": 60.0}
    made = {"kind": "supervised", "commit": "0123456789ab", "processor": "one"}
    cells = [{**made, **made_up, "seed": seed, "rmse": 0.02 + 0.002 * seed} for seed in (0, 1)]
    (line,) = [line for line in pulse.markdown({"cells": cells}).splitlines() if line.startswith("| two")]
    assert "| 2 | 3,000 | 0.900 | 0.910 | 0.0210 | 0.0200 | 1.05 | 90.0% | 60 |" in line
