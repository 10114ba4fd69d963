"""Tests of dynamic binarization: the mean of draws, independence of the batch, test pixels drawn once, and refusals."""

import math

import numpy as np
import pytest
import torch

from ddvi_fast import data, rng
from ddvi_fast.config.compose import compose
from ddvi_fast.data import binarize, from_arrays
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.training.run import load_dataset


def test_the_mean_of_draws_is_the_shade_and_pixels_are_independent():
    shades = torch.tensor([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])
    drawn = binarize(shades.expand(20_000, 2, 6), rng.Draws(seed=3)).double().flatten(1)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    expected = shades.double().repeat(2)
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((drawn.mean(0) - expected).abs() <= 4 * error).all()
    inner = (expected > 0) & (expected < 1)
    correlations = torch.corrcoef(drawn[:, inner].T) - torch.eye(int(inner.sum()))
    assert correlations.abs().max() < 5 / math.sqrt(20_000)


def test_an_image_has_its_own_pixels_in_any_batch_and_others_at_other_draws():
    shades = torch.rand(20, 3, 5, generator=torch.Generator().manual_seed(0))
    draws = rng.Draws(seed=8, first_index=1000)
    whole = binarize(shades, draws)
    assert torch.equal(whole, torch.cat([binarize(shades[:7], draws), binarize(shades[7:], draws.advance(7))]))
    assert torch.equal(whole, binarize(shades, draws))
    assert not torch.equal(whole, binarize(shades, draws.advance(20))) and not torch.equal(whole, binarize(shades, rng.Draws(9, 1000)))


def test_test_pixels_are_drawn_once_and_training_images_keep_their_shades():
    plain, drawn = data.load("digits"), data.load("digits", binarize=True)
    assert torch.equal(drawn.train_inputs, plain.train_inputs)
    pixels, shades = drawn.inputs(split="test"), plain.inputs(split="test")
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    assert abs(float((pixels - shades).mean())) < 4 * float((shades * (1 - shades)).sum().sqrt()) / shades.numel()
    runs = [load_dataset(compose(["dataset.binarize=true", f"seed={seed}"])) for seed in (0, 5)]
    assert all(torch.equal(run.test_inputs, drawn.test_inputs) for run in runs)
    assert torch.equal(data.load("digits", binarize=True, limit=30).test_inputs, drawn.test_inputs[:30])


def test_many_test_examples_are_drawn_as_one():
    shades = np.random.default_rng(0).integers(0, 5, (9000, 2), np.uint8)
    whole = from_arrays("shades", shades, test_inputs=shades, scale=0.25, value_range=(0.0, 1.0))
    drawn = data.binarization.with_drawn_test(whole)
    expected = binarize(whole.inputs(split="test"), rng.Draws(0).lane("test_pixels"))
    assert torch.equal(drawn.inputs(split="test"), expected) and drawn.test_inputs.dtype == torch.uint8


def test_validation_pixels_are_drawn_from_the_held_out_images():
    plain, drawn = (data.load("digits", validation=0.2, binarize=wanted) for wanted in (False, True))
    assert torch.equal(drawn.train_inputs, plain.train_inputs) and drawn.validation == 0.2
    shades = plain.inputs(split="test")
    differ = drawn.inputs(split="test") != shades
    assert set(drawn.inputs(split="test").unique().tolist()) == {0.0, 1.0} and not differ[(shades == 0) | (shades == 1)].any()


@pytest.mark.parametrize("flip", [False, True])
def test_training_images_are_drawn_anew_in_every_batch(flip):
    augment = augmentation(compose(["dataset.binarize=true", f"dataset.flip={str(flip).lower()}"]))
    x = data.load("digits").inputs(slice(0, 64))
    first, second = (augment(x, rng.Draws(0, place)) for place in (0, 64))
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)
    assert torch.equal(first, augment(x, rng.Draws(0, 0)))
    assert torch.equal(first, binarize(data.flip(x, rng.Draws(0, 0)) if flip else x, rng.Draws(0, 0)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=mnist", "dataset.likelihood=gaussian"], "dataset.binarize: expected false unless dataset.likelihood is bernoulli"),
        (["dataset=1kg"], "dataset.binarize: expected false unless"),
        (
            ["dataset=genomes", "dataset.likelihood=bernoulli"],
            "dataset.binarize: expected false, but for images with shades from 0 to 1, got true for",
        ),
    ],
)
def test_refused_where_it_has_no_meaning(overrides, words, one_line):
    import ddvi_fast.genomes  # noqa: F401 - registers its data sets

    one_line(lambda: load_dataset(compose([*overrides, "dataset.binarize=true"])), words)


def test_refused_for_values_that_are_no_shades(one_line):
    measured = from_arrays("measured", np.random.default_rng(0).random((20, 3)))
    one_line(lambda: data.binarization.with_drawn_test(measured), r"dataset\.binarize: expected false, but for images")
