"""Tests of the picture of the page on coordinates."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import torch
from matplotlib.image import imread

from ddvi_fast import likelihoods, models, networks, posteriors, priors

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "coordinates.py"


def test_each_run_has_a_panel_named_by_its_coordinates_over_the_prior(tmp_path, monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("docs_coordinates", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    prior = priors.make("pinwheel")
    model = models.LatentVariableModel(prior, networks.MLP(2, [4], 5), likelihoods.make("bernoulli"))
    latent = posteriors.Gaussian(networks.MLP(5, [4], 4), 2)
    pushed = posteriors.Gaussian(networks.MLP(5, [4], 6), 3, "prior", prior)
    dataset = SimpleNamespace(inputs=lambda split: torch.zeros(30, 5), test_labels=torch.arange(30) % 10)
    config = SimpleNamespace(seed=0, method=SimpleNamespace(task="unsupervised"))
    runs = {
        name: SimpleNamespace(config=config, dataset=dataset, experiment=SimpleNamespace(model=model, posterior=posterior))
        for name, posterior in (("a", latent), ("b", pushed))
    }
    monkeypatch.setattr(script.Run, "load", runs.__getitem__)
    drawn, compare = [], script.plots.comparison
    monkeypatch.setattr(
        script.plots, "comparison", lambda path, panels, **options: drawn.append((panels, options)) or compare(path, panels, **options)
    )
    picture = script.draw(["a", "b"], tmp_path / "c.png")
    ((panels, options),) = drawn
    assert [name for name, _, _ in panels] == ["coordinates=latent", "coordinates=prior"]
    assert prior.log_prob(panels[1][1]).mean() > prior.log_prob(panels[0][1]).mean() + 10  # the latents of the second are on the arms
    assert options["prior_samples"].shape == (2000, 2) and imread(picture).shape[1] > imread(picture).shape[0]
