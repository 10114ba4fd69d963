"""Tests of every method by its name: posterior, objective, evaluation."""

from types import SimpleNamespace

import pytest

from ddvi_fast import objectives, posteriors
from ddvi_fast.cli.tables import print_result
from ddvi_fast.training.evaluate import evaluate

METHODS = {
    "planar": (posteriors.Planar, objectives.ELBO),
    "realnvp": (posteriors.RealNVP, objectives.ELBO),
    "spline": (posteriors.Spline, objectives.ELBO),
    "h_iaf": (posteriors.HierarchicalIAF, objectives.ELBO),
    "hamiltonian": (posteriors.Hamiltonian, objectives.ELBO),
    "pis": (posteriors.PathIntegral, objectives.ELBO),
    "beta_vae": (posteriors.Gaussian, objectives.ELBO),
    "aae": (posteriors.Adversarial, objectives.Adversarial),
    "wae": (posteriors.Adversarial, objectives.WAE),
}


@pytest.mark.parametrize("prior", ["pinwheel", "swiss_roll_noisy", "less_noisy_square"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_posterior_and_objective(built, finite_updates, method, prior):
    experiment = built(f"method={method}", f"prior={prior}")
    (phase,) = experiment.phases
    family, objective = METHODS[method]
    assert type(experiment.posterior) is family and type(phase.objective) is objective
    finite_updates(phase.objective)


@pytest.mark.parametrize("method", [name for name, (_, objective) in METHODS.items() if objective is objectives.ELBO])
def test_the_importance_weighted_bound_trains_every_method_with_a_density(built, finite_updates, method):
    beta = ["method.beta=1"] if method == "beta_vae" else []
    experiment = built(f"method={method}", "method.objective=iwae", "method.num_samples=3", *beta)
    assert len(finite_updates(experiment.phases[0].objective)) == 1


def test_beta_is_a_factor_of_the_kl_weight(built):
    weights = [built(f"method={method}", "recipe.kl.kind=constant").phases[0].objective.kl.weight for method in ("vae", "beta_vae")]
    assert weights == [1.0, 4.0]


@pytest.mark.parametrize("method", ["aae", "wae"])
def test_evaluation_of_an_implicit_posterior_leaves_its_bounds_out(assembled, method, capsys, tmp_path):
    config, dataset, experiment = assembled(f"method={method}", "evaluation.limit=20", "evaluation.prior_samples=200", "prior.resolution=10")
    figures = evaluate(config, experiment, dataset)
    assert {"evidence", "knn_accuracy", "latent_nll", "mmd"} <= figures.keys()
    assert not {"elbo", "iwae", "gap", "elbo_released"} & figures.keys()
    print_result(SimpleNamespace(metrics=figures, figures=[], folder=SimpleNamespace(path=tmp_path)))
    assert "no ELBO, IWAE or gap: this posterior has no density" in capsys.readouterr().out
