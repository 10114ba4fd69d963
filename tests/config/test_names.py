"""Tests of the committed listing of setting names, and of checks of names without torch."""

from __future__ import annotations

import pytest

from ddvi_fast import DDVI
from ddvi_fast.config import names


def test_the_listing_holds_the_names_of_the_schema() -> None:
    assert [line for line in names.LISTING.read_text().splitlines() if not line.startswith("#")] == names.listing(), (
        "python -m ddvi_fast.config.names writes it anew"
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "expected name=value"),
        ("=3", "expected name=value"),
        ("epoch=3", "did you mean epochs"),
        ("zzzz=3", "ddvi-fast train --settings"),
        ("prior=pinwhel", "did you mean pinwheel"),
        ("prior=swiss_roll", "prior=swiss_roll is now prior=swiss_roll_noisy"),
        ("recipe=relaesed", "did you mean released"),
    ],
)
def test_wrong_words_are_named(override: str, words: str, one_line) -> None:
    one_line(lambda: names.check_overrides([override]), words)


def test_free_options_are_left_to_what_takes_them(one_line) -> None:
    names.check_overrides(["prior.options.anything=1", "dataset.likelihood_options.scale=2"])
    one_line(lambda: names.check_overrides(["prior.optionss.noise=1"]), "did you mean")


def test_the_estimator_answers_the_old_name_of_a_prior(one_line) -> None:
    one_line(lambda: DDVI(prior="swiss_roll").fit([[0.0, 1.0]] * 20), "swiss_roll is now prior=swiss_roll_noisy")
