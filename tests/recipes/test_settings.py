"""Tests of settings that a run would ignore: they are refused by name, and no other setting is."""

import dataclasses

import pytest

from ddvi_fast.config.compose import compose
from ddvi_fast.config.names import choices, setting_names
from ddvi_fast.engine.run_settings import EXECUTION, MACHINE, OUTPUT
from ddvi_fast.recipes.settings import check_settings, settings_of, shown


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["method=vae", "method.chain.num_steps=20"],
            r"method\.chain\.num_steps: expected a run with method\.posterior=diffusion or[^\n]*got method=vae with the gaussian",
        ),
        (["method=pis", "method.chain.eta=0.5"], r"method\.chain\.eta: expected a run with method\.posterior=diffusion,"),
        (["method=vae", "method.sleep.weight=0.5"], r"method\.sleep\.weight: expected a run with method\.objective=ddvi,"),
        (["method=ddvi", "method.objective=elbo", "method.sleep.timesteps=2"], r"method\.sleep\.timesteps: [^\n]*method\.objective=ddvi"),
        (["method=vae", "recipe=released", "method.sleep.data=true"], r"method\.sleep\.data: expected a run with method\.objective=ddvi or "),
        (["method=ddvi", "method.flow.num_steps=3"], r"method\.flow\.num_steps: expected a run with method\.posterior=iaf or"),
        (["method=iaf", "method.flow.num_levels=3"], r"method\.flow\.num_levels: expected a run with method\.posterior=hierarchical_iaf,"),
        (["method=aae", "method.flow.num_steps=3"], r"method\.flow\.num_steps: expected a run with method\.posterior=iaf or"),
        (["method=vae", "method.semi.noise=0.1"], r"method\.semi\.noise: expected a run with method\.task=semi or method\.task=m2"),
        (["method=vae_clustering", "method.semi.noise=0.1"], r"method\.semi\.noise: expected [^\n]*clustering with latent clusters"),
        (["method=ddvi", "dataset.labels=50"], r"dataset\.labels: expected a run with method\.task=semi or method\.task=m2"),
        (["method=ddvi", "method.clustering.eta=1"], r"method\.clustering\.eta: expected a run with method\.task=clustering,"),
        (["method=umap", "method.map.perplexity=5"], r"method\.map\.perplexity: expected a run with method=tsne,"),
        (["method=pca", "method.chain.num_steps=5"], r"method\.chain\.num_steps: expected a run with method\.posterior=diffusion"),
        (["method=vae", "recipe.denoiser_lr=3"], r"recipe\.denoiser_lr: expected a run with method\.posterior=diffusion"),
        (["method=vae", "recipe.prior_epochs=3"], r"recipe\.prior_epochs: expected a run with recipe=released"),
        (["method=diff_vae", "recipe=released", "recipe.sleep_updates=5"], r"recipe\.sleep_updates: expected a run with recipe=released"),
        (["recipe=released", "method.chain.num_steps=20"], r"method\.chain\.num_steps: [^\n]*got method=ddvi with[^\n]*recipe=released"),
        (["method=vae", "dataset.decoder.dropout=0.2"], r"dataset\.decoder\.dropout: expected a run with recipe=released"),
        (["method=aae", "recipe=released", "dataset.decoder.dropout=0.2"], r"dataset\.decoder\.dropout: expected a run with recipe=released"),
        (["method=vae_semi", "recipe.shared_context=true"], r"recipe\.shared_context: expected a run with method\.posterior=diffusion or"),
        (["recipe=released", "recipe.prior_weight=2"], r"recipe\.prior_weight: expected a run with recipe=released"),
    ],
)
def test_a_setting_that_the_run_ignores_is_refused(one_line, overrides, words):
    one_line(lambda: check_settings([override.partition("=")[0] for override in overrides], compose(overrides)), rf"^{words}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=ddvi", "method.chain.eta=0.5", "method.sleep.data=true", "recipe.denoiser_lr=3", "recipe.schedule_lr=1", "recipe.lr=1e-3"],
        ["method=pis", "method.chain.num_steps=5"],
        ["method=h_iaf", "method.flow.num_levels=3", "method.flow.context_dim=5"],
        ["method=aae", "method.flow.context_dim=5"],
        ["method=ddvi_semi", "method.semi.noise=0.1", "dataset.labels=50", "method.chain.num_steps=5", "method.sleep.weight=1"],
        ["method=ddvi_semi", "recipe=released", "method.chain.num_steps=5"],
        ["method=ddvi_clustering", "method.clustering.eta=1"],
        ["method=vae_clustering", "method.clustering.latent=true", "method.semi.noise=0.1"],
        ["method=tsne", "method.map.perplexity=5"],
        ["method=vae", "recipe=released", "recipe.prior_weight=2"],
        ["recipe=released", "recipe.sleep_updates=5", "recipe.prior_epochs=2"],
        ["method=diff_vae", "recipe=released", "recipe.prior_epochs=2", "dataset.decoder.dropout=0.2"],
        ["method=iaf", "recipe=released", "dataset.decoder.dropout=0.2", "recipe.shared_context=false"],
        ["method=spline", "recipe.shared_context=true"],
        ["method=iaf_semi", "recipe.shared_context=false"],
        *(
            [*run, "method.sleep.data=true", "method.sleep.classes=2", "method.sleep.decoder=2", "method.sleep.candidates=8"]
            for run in (["method=vae"], ["method=aae"], ["method=iwae", "method.coordinates=latent"], ["method=vae_semi"])
        ),
        ["method=m2", "method.sleep.classes=2"],
        ["method=vae_clustering", "method.coordinates=prior", "method.sleep.classes=2"],
        ["method=iaf_clustering", "method.clustering.latent=true", "method.sleep.classes=2"],
    ],
)
def test_a_setting_that_the_run_looks_at_passes(overrides):
    check_settings([override.partition("=")[0] for override in overrides], compose(overrides))


def test_the_command_refuses_it_before_it_writes_anything(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "method.sleep.weight: expected" in shell("train", "method=vae", "method.sleep.weight=1", code=2)
    assert not any(tmp_path.iterdir())


def test_only_the_settings_of_a_run_are_shown():
    config = compose(["method=pis"])
    method = shown(config, dataclasses.asdict(config))["method"]
    assert set(method["chain"]) == {"num_steps", "hidden_dim", "context_dim", "learn_variances"}
    assert not {"flow", "semi", "clustering", "map"} & set(method)
    assert set(method["sleep"]) == {"data", "classes", "decoder", "candidates"}  # those of the class and the decoder
    released = compose(["method=pis", "recipe=released"])
    assert "sleep" not in shown(released, dataclasses.asdict(released))["method"]


def test_every_conditional_setting_exists():
    for method in choices("method"):
        assert settings_of(compose([f"method={method}"])) <= set(setting_names()), method


def test_settings_of_runs_exist():
    assert {*OUTPUT, *MACHINE, *EXECUTION} - {"resume"} <= set(setting_names())
