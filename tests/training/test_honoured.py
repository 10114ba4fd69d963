"""Tests of settings that the other settings of a run leave without effect: they are refused where they are stated."""

from __future__ import annotations

import pytest

from ddvi_fast.config.compose import compose
from ddvi_fast.config.names import setting_names
from ddvi_fast.training.engines import engine_line
from ddvi_fast.training.honoured import RULES, check_honoured, check_some
from ddvi_fast.training.values import check_values


def check(*overrides: str) -> None:
    check_honoured([override.partition("=")[0] for override in overrides], compose(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=pca", "recipe.lr=0.1"], ["method=umap", "epochs=3"], ["method=tsne", "evaluation.limit=3"], ["method=pca", "precision=bf16"],
        ["method=pca", "dataset.encoder.hidden=[3]"], ["method=pca", "tracker=wandb"], ["method=pca", "prior.options.noise=1"],
        ["recipe.kl.fraction=0.2"], ["recipe.kl.hold=0.2"], ["recipe.prior_blur_fraction=0.2"], ["epochs=3", "recipe.epochs=4"],
        ["method=wae", "recipe.kl.weight=0.1"], ["method=aae", "recipe.prior_blur=1"], ["recipe.context_dropout=0.5"],
        ["method=vae", "recipe.defects.unscaled_noise=true"], ["method=iaf", "recipe.defects.standard_normal_top=true"],
        ["method.coordinates=latent", "method.discrete_class=false"], ["method=vae", "method.weight=3"], ["method.weight=3"],
        ["method.doubly_reparametrised=true"], ["latent_dim=3", "prior=gaussian", "prior.resolution=10"], ["dataset.genotypes.label=x"],
        ["dataset=mnist", "dataset.genotypes.held_out=0.3"], ["download=true"], ["dataset=genomes", "download=true"],
        ["dataset=mnist", "split_seed=3"], ["dataset=omniglot", "split_seed=3"], ["dataset=omniglot", "download=true"],
        ["method=pca", "dataset.binarize=true"],
        ["data_dir=x"], ["checkpoint_steps=null", "checkpoint_keep=3"], ["capture=true"], ["capture=true", "engine=parallel", "device=cuda"],
        ["recipe.sigmoid_variances=true"], ["method=aae", "method.coordinates=latent", "recipe.sigmoid_variances=true"],
        ["method=m2", "prior=gaussian", "recipe.sigmoid_variances=true"],
        ["method=vae_clustering", "method.coordinates=prior", "recipe.sigmoid_variances=true"],
        ["method=wae", "recipe.defects.log_var_twice=true"], ["method=aae", "recipe.defects.log_var_twice=true"],
        ["method=iwae", "recipe.defects.log_var_twice=true"], ["method=wae", "evaluation.elbo_samples=3"],
        ["method=aae", "evaluation.iwae_samples=3"],
        ["recipe=released", "evaluation.elbo_samples=3"], ["timeout=60"],
        ["method=wae", "evaluation.evidence=false", "evaluation.limit=3"], ["method=aae", "prior=gaussian", "latent_dim=3", "evaluation.limit=3"],
        ["method.chain.eta=0", "evaluation.evidence=false", "evaluation.limit=3"],
        ["method=ddvi_semi", "method.chain.eta=0", "evaluation.evidence=false", "evaluation.limit=3"],
        ["method.chain.eta=0", "evaluation.gap=true"],
        ["latent_dim=3", "prior=gaussian", "evaluation.evidence=true"], ["method=wae", "evaluation.evidence=false", "evaluation.evidence_blur=1"],
        ["compile_networks=true", "engine=parallel"], ["compile_networks=true", "precision=fp16"], ["compile_networks=true", "accumulation=2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_setting_without_effect_is_refused_by_name(overrides, one_line):
    message = one_line(lambda: check(*overrides), "expected a run with")
    assert any(message.startswith(override.partition("=")[0]) for override in overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=pca", "seed=1", "latent_dim=3", "figures=false", "limit=100"], ["recipe.kl.kind=linear", "recipe.kl.fraction=0.2", "epochs=3"],
        ["recipe.prior_blur=1", "recipe.prior_blur_fraction=0.3"], ["recipe.epochs=4"], ["recipe.shared_context=false", "recipe.context_dropout=0.5"],
        ["recipe=released", "recipe.context_dropout=0.5"], ["method.discrete_class=false"], ["method=wae", "method.weight=3"],
        ["method=iwae", "method.doubly_reparametrised=true"], ["dataset=genomes", "dataset.genotypes.label=x"],
        ["dataset=mnist", "data_dir=x", "download=true"],
        ["split_seed=3"], ["checkpoint_keep=3"], ["capture=false"], ["capture=true", "device=cuda"], ["compile_networks=true"],
        ["method=aae_semi", "recipe.kl.weight=1"], ["prior=gaussian", "recipe.sigmoid_variances=true"],
        ["dataset.encoder.hidden=[]", "recipe.sigmoid_variances=true"],
        ["method=vae", "recipe=released", "recipe.sigmoid_variances=true"], ["method=vae_semi", "recipe.sigmoid_variances=true"],
        ["method=vae", "recipe.defects.log_var_twice=true"], ["method=iwae", "recipe=released", "recipe.defects.log_var_twice=true"],
        ["method=wae", "evaluation.evidence_blur=1"], ["method=wae", "evaluation.limit=3"],
        ["recipe=released", "evaluation.evidence=false", "evaluation.limit=3"], ["method=vae", "evaluation.evidence=false", "evaluation.limit=3"],
        ["prior=gaussian", "method.chain.eta=0", "evaluation.evidence=false", "evaluation.limit=3"],
        ["evaluation.gap=true", "evaluation.elbo_samples=3"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_setting_with_effect_is_taken(overrides):
    check(*overrides)


def test_a_setting_of_several_runs_must_have_an_effect_in_one(one_line):
    runs = [compose(["method=vae"]), compose(["method=ddvi"])]
    check_some(["method.chain.num_steps", "recipe.lr"], runs)
    one_line(lambda: check_some(["recipe.lr", "recipe.kl.fraction"], runs), "recipe.kl.fraction: expected a run with another recipe.kl.kind")
    one_line(lambda: check_some(["method.semi.noise"], runs), "method.semi.noise: expected a run with method.task=semi")


@pytest.mark.parametrize("command", [["demo"], ["reproduce", "digits"], ["reproduce", "digits", "--choose"]], ids=" ".join)
def test_commands_of_several_runs_refuse_before_they_train(command, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "recipe.kl.fraction: expected a run with another recipe.kl.kind" in shell(*command, "recipe.kl.fraction=0.1", code=2)


def test_rules_are_of_settings_that_exist():
    assert {name for rule in RULES for name in rule.settings} - {"recipe", "evaluation"} <= set(setting_names())


def test_the_command_refuses_before_it_trains(shell, tmp_path):
    assert "recipe.kl.fraction: expected a run with another recipe.kl.kind" in shell(
        "train", "recipe.kl.fraction=0.1", f"run_dir={tmp_path}/x", code=2
    )
    assert not (tmp_path / "x").exists()


def test_the_precision_in_force_is_told():
    assert engine_line(compose([])) is None
    assert engine_line(compose(["precision=bf16"])).startswith("precision bf16 (")


@pytest.mark.parametrize(("how", "warned"), [("native", False), ("emulated", True)])
def test_a_precision_that_is_emulated_is_warned_of(how, warned, monkeypatch):
    monkeypatch.setattr("ddvi_fast.precision.support", lambda precision, device: how)
    for options in ([], ["engine=parallel"]):
        line = engine_line(compose(["precision=bf16", *options]))
        assert line.endswith("warning: bf16 is emulated on this cpu, so it is no faster than precision=float32") == warned


def test_a_time_limit_has_an_effect_under_a_launcher(monkeypatch, one_line):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check("timeout=60")
    one_line(lambda: check_values(compose(["timeout=0"])), "^timeout: expected a number above 0")
