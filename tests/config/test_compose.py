"""Tests of values of settings from text: strings as they stand, everything else by the type of its setting, from any thread."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter

import pytest

from ddvi_fast.config import compose as composition
from ddvi_fast.config import names
from ddvi_fast.config.compose import compose
from ddvi_fast.estimator.training import as_settings

STRANGE = (
    "2026_11_29", "1e3", "0x10", "1:30", "läufe", "日本", "~/x", "x (copy)", "a#b", "R&D", "a,b", "{a: 1}", "[1]", "'quoted'", '"x"', "${seed}",
    "$HOME", "a=b", " x ", "true", "None", "NULL", "-", "\\", "a\\,b", "", "%d", "+x", "@x", "nan", "?", "*", "a: b", "!!int 3", "a\nb", "null ",
)  # fmt: skip
STRINGS = [name for name in names.setting_names() if names._kind(name)[0] == "str"]


def test_settings_that_are_strings_are_taken_as_they_stand():
    assert len(STRINGS) > 20
    for name in STRINGS:
        for text in STRANGE:
            assert names.values_of(name, text) == as_settings([f"{name}={text}"]) == {name: text}
    for text in STRANGE:
        config = compose([f"run_dir={text}", f"data={text}", f"dataset.genotypes.label={text}"])
        assert (config.run_dir, config.data, config.dataset.genotypes.label) == (text,) * 3


def test_null_is_null_only_where_a_setting_may_be():
    assert compose(["run_dir=null"], ["run_dir=x"]).run_dir is None
    assert compose(["device=null"]).device == "null", "a device of this name is refused where devices are known"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs=010", 10),
        ("epochs=null", None),
        ("recipe.lr=1e-3", 1e-3),
        ("recipe.lr=3", 3.0),
        ("recipe.max_norm=null", None),
        ("download=True", True),
        ("dataset.encoder.hidden=[16, 8]", [16, 8]),
        ("dataset.encoder.hidden=[]", []),
        ("dataset.labels=0.2", 0.2),
        ("dataset.labels=released", "released"),
        ("dataset.labels=2026_11", "2026_11"),
        ("prior.options={noise: 0.2, dim: 3}", {"noise": 0.2, "dim": 3}),
        ("dataset.likelihood_options={value_range: [0.0, 1.0]}", {"value_range": [0.0, 1.0]}),
    ],
)
def test_everything_else_is_read_by_the_type_of_its_setting(setting, value):
    found = attrgetter(setting.partition("=")[0])(compose([setting]))
    assert found == value and type(found) is type(value)


def test_a_mapping_sets_what_it_names_and_leaves_the_rest():
    kl = compose(["recipe.kl.hold=0.25", "recipe.kl={kind: linear, weight: 2}"]).recipe.kl
    assert (kl.kind, kl.weight, kl.hold) == ("linear", 2.0, 0.25)
    assert compose(["dataset.genotypes={label: 1e3}"]).dataset.genotypes.label == "1e3"


@pytest.mark.parametrize(
    "setting",
    ["epochs=1_0", "epochs=1e3", "epochs=٣", "epochs=many", "epochs=", "recipe.lr=1_0.0", "recipe.lr=nan", "recipe.max_norm=inf",
     "download=yes", "download=1", "dataset.encoder.hidden=8", "dataset.encoder.hidden=[8", "recipe.kl=linear", "recipe.kl={", "recipe.kl={epoch: 3}",
     "recipe.kl=- a", "dataset.encoder.hidden=" + "[" * 9999],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_in_one_line(setting, one_line):
    one_line(lambda: compose([setting]))


TWICE = [
    ("epochs=3", "epochs=4"), ("prior=square", "prior=pinwheel"), ("recipe.kl.weight=1", "recipe.kl={weight: 2, kind: linear}"),
    ("recipe.kl={kind: linear}", "recipe.kl={kind: constant}"), ("prior.options={noise: 0.1}", "prior.options.noise=0.2"),
    ("recipe.kl={weight: 1, weight: 2}",), ("prior.options={widths: {a: 1, a: 2}}",), ("run_dir=a", "seed=1", "run_dir=b"),
    ("recipe.max_norm=3", "recipe.max_norm=null"),
]  # fmt: skip


@pytest.mark.parametrize("overrides", TWICE, ids=lambda overrides: overrides[0])
def test_a_setting_has_one_value(overrides, one_line):
    for read in (compose, names.check_overrides, as_settings):
        one_line(lambda read=read: read(overrides), r"^[a-z_.]+: expected one value, got ")


def test_a_setting_may_be_repeated_and_stands_before_a_default():
    assert compose(["epochs=3", "seed=2", "epochs=03"]).epochs == 3
    config = compose(["recipe.kl.weight=2", "dataset=mnist"], ["recipe.kl={weight: 1, kind: linear}", "dataset=digits", "epochs=9"])
    assert (config.recipe.kl.weight, config.recipe.kl.kind, config.dataset.name, config.epochs) == (2.0, "linear", "mnist", 9)


def test_files_refer_to_settings_that_overrides_change():
    options = compose(["dataset=genomes", "dataset.genotypes.num_components=7"]).dataset.likelihood_options
    assert options["width"] == 7 and compose(["dataset=genomes"]).dataset.likelihood_options["width"] == 20


def test_the_version_of_the_callers_hydra_stays(monkeypatch):
    version = pytest.importorskip("hydra.version")
    theirs = object()
    monkeypatch.setattr(version.VersionBase.instance(), "version_base", theirs)
    composition._composed.__wrapped__((("prior", "square"),))
    assert version.getbase() is theirs


def test_threads_compose_at_once_and_the_callers_own_hydra_stays():
    hydra = pytest.importorskip("hydra.core.global_hydra").GlobalHydra
    theirs = hydra.instance().hydra = object()
    composition._composed.cache_clear()
    priors = names.choices("prior") * 3
    try:
        with ThreadPoolExecutor(6) as pool:
            found = [config.prior.name for config in pool.map(lambda prior: compose([f"prior={prior}"]), priors)]
        assert found == [compose([f"prior={prior}"]).prior.name for prior in priors] and hydra.instance().hydra is theirs
    finally:
        hydra.instance().clear()


WITHOUT = """
import sys
for name in ("hydra", "omegaconf", "yaml"):
    sys.modules[name] = None
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from ddvi_fast import DDVI
x = np.random.default_rng(0).normal(size=(40, 3))
settings = ("recipe.lr=1e-3", "dataset.decoder.hidden=[4]")
model = DDVI(epochs=1, hidden=(4,), num_steps=2, settings=settings)
with ThreadPoolExecutor(3) as pool:
    found = list(pool.map(lambda _: DDVI(**model.get_params()).fit(x).score(x), range(3)))
assert found == [model.fit(x).score(x)] * 3, found
model.save(sys.argv[1])
assert DDVI.load(sys.argv[1]).score(x) == found[0]
"""


def test_the_estimator_needs_no_hydra_and_runs_in_threads(tmp_path):
    ran = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "model")], capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, ran.stderr
