"""Tests of the metrics of an experiment against their definitions."""

import math

import torch

from ddvi_fast import metrics
from ddvi_fast.rng import Draws
from ddvi_fast.training.evaluate import evaluate, split_of_gap

QUICK = ("evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.limit=30", "evaluation.prior_samples=200")


def test_the_second_evidence_is_that_under_prior_samples_with_noise(assembled):
    config, dataset, experiment = assembled("method=vae", "prior=swiss_roll_noisy", "evaluation.evidence_blur=0.8", *QUICK)
    experiment.posterior.requires_grad_(False)
    for parameter in experiment.model.requires_grad_(False).decoder.parameters():
        parameter.mul_(2.5)  # so that the decoded means depend on the latents
    figures, x = evaluate(config, experiment, dataset), dataset.inputs(slice(0, 30), "test")

    z = experiment.model.prior.sample(40_000, draws=Draws(7)).float()
    z = z + 0.8 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    joint = experiment.model.log_likelihood(x, z.unsqueeze(1))
    parts = torch.logsumexp(joint.view(40, 1000, 30), 1) - math.log(1000)
    simulated = (torch.logsumexp(parts, 0) - math.log(40)).mean()
    error = (parts.exp().std(0) / parts.exp().mean(0) / 40**0.5).mean()  # of a row's evidence; rows share their latents
    assert abs(figures["evidence_blurred"] - simulated) < 4 * error < 0.3
    assert abs(figures["evidence_blurred"] - figures["evidence"]) > 8 * error

    sample = experiment.posterior.sample(x, 2, Draws(8))
    kernels = experiment.model.prior.sample(20_000, draws=Draws(9)).float()  # whose mean is the density of the prior with noise
    near = torch.exp(-torch.cdist(sample.z.flatten(0, 1), kernels).square() / (2 * 0.8**2)).mean(1).view(2, 30)
    log_prior = near.log() - math.log(2 * math.pi * 0.8**2)
    bound = experiment.model.log_likelihood(x, sample.z) + log_prior + sample.log_ratio
    assert abs(figures["elbo_blurred"] - bound.mean()) < 4 * bound.std() / 60**0.5
    assert figures["gap_blurred"] == figures["evidence_blurred"] - figures["elbo_blurred"] != figures["gap"]


def test_the_parts_of_the_gap_add_up_to_that_of_the_first_rows(assembled):
    settings = ("method=ddvi", "prior=gaussian", "prior.resolution=60", "limit=256", "evaluation.gap=true", *QUICK)
    config, dataset, experiment = assembled(*settings)
    figures = evaluate(config, experiment, dataset)
    parts = {name: value for name, value in figures.items() if name.startswith("gap_")}
    assert set(parts) == {"gap_amortisation", "gap_family", "gap_steps"}
    whole = split_of_gap(config, experiment, dataset.inputs(slice(0, 30), "test"))
    assert abs(sum(parts.values()) - float(whole.total.mean())) < 1e-3
    assert abs(float(whole.total.mean()) - figures["gap"]) < 4 * figures["elbo_error"] + 0.5  # other samples of the same rows
    assert parts["gap_amortisation"] > 0


def test_the_neighbours_of_drawn_test_images_are_drawn_training_images(assembled, monkeypatch):
    seen = {}
    config, dataset, experiment = assembled("method=vae", "prior=gaussian", "evaluation.evidence=false", "dataset.binarize=true", "limit=90", *QUICK)
    encode = metrics.encode
    monkeypatch.setattr(metrics, "encode", lambda posterior, x, draws: seen.setdefault(len(seen), x) is x and encode(posterior, x, draws))
    evaluate(config, experiment, dataset)
    assert len(seen) == 2 and torch.equal(seen[0], dataset.inputs(split="test"))
    shades = dataset.inputs()
    assert set(seen[1].unique().tolist()) == {0.0, 1.0} and not torch.equal(seen[1], shades)
    assert bool((seen[1] == shades)[(shades == 0) | (shades == 1)].all())
