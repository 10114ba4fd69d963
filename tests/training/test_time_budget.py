"""Tests of epochs that fit into minutes: all stages are shortened alike, none is left out."""

from ddvi_fast.config.compose import compose
from ddvi_fast.engine.engine import Engine
from ddvi_fast.training import time_budget as clock
from ddvi_fast.training.run import load_dataset


def fitted(monkeypatch, *overrides, seconds=0.5):
    config = compose(["limit=256", "recipe.batch_size=64", *overrides])  # four batches
    monkeypatch.setattr(clock, "seconds_a_step", lambda *arguments: seconds)
    return clock.within_minutes(config, load_dataset(config), None)


def test_as_many_epochs_as_fit(monkeypatch):
    limits = ((), ("max_minutes=1",), ("max_minutes=0.001",), ("max_minutes=1000",))
    assert [fitted(monkeypatch, *limit).recipe.epochs for limit in limits] == [400, 30, 1, 400]
    assert fitted(monkeypatch, "max_minutes=1", "epochs=40").epochs == 30


def test_all_stages_shrink_alike(monkeypatch):
    wide = ("recipe=released", "recipe.prior_epochs=100", "recipe.prior_steps=4", "recipe.warmup_epochs=100", "recipe.epochs=200")
    recipe = fitted(monkeypatch, *wide, "max_minutes=1").recipe
    assert (recipe.prior_epochs, recipe.warmup_epochs, recipe.epochs) == (7, 7, 15)


def test_minutes_must_be_positive(monkeypatch, one_line):
    one_line(lambda: fitted(monkeypatch, "max_minutes=-1"), "max_minutes")


def test_a_timing_leaves_the_run_as_it_would_be():
    config = compose(["limit=256", "recipe.batch_size=64", "method=vae", "max_minutes=1e-6"])
    short = clock.within_minutes(config, load_dataset(config), Engine)
    assert short.recipe.epochs == 1 and {**vars(short), "recipe": None} == {**vars(config), "recipe": None}
