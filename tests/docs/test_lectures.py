"""Tests of the page on the models of lectures: every name and setting in it exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from ddvi_fast.config.compose import compose

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lectures.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(posteriors|objectives|schedules|metrics|evidence|ops)\.(\w+)", PAGE)))
SETTINGS = sorted(set(re.findall(r"`(method[\w.]*=\w+)`", PAGE)))
# Settings that need others beside them.
WITH = {
    "method.doubly_reparametrised=true": ["method=iwae"],
    "method.chain.parametrisation=eps": ["method.coordinates=latent"],
    "method.chain.eta=0": ["method.coordinates=latent", "method.chain.learn_variances=false"],
    "method.chain.schedule_options.kind=ve": ["method.coordinates=latent", "method.chain.schedule=linear"],
    "method=m2": ["dataset=mnist"],
    "method=vae_semi": ["dataset=mnist"],
}


def test_the_page_has_names_and_settings():
    assert len(NAMES) > 15 and len(SETTINGS) > 15


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_exists(module, name):
    assert hasattr(importlib.import_module(f"ddvi_fast.{module}"), name)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_accepted(setting):
    compose([*WITH.get(setting, []), setting])
