"""Every method by its name: what it builds, and wrong combinations."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import InputError, objectives, posteriors
from ddvi_fast.cli.tables import print_result
from ddvi_fast.config.compose import compose
from ddvi_fast.objectives import Progress
from ddvi_fast.recipes.build import build
from ddvi_fast.rng import Draws
from ddvi_fast.training.evaluate import evaluate
from ddvi_fast.training.run import load_dataset

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


def built(*overrides):
    config = compose([*overrides])
    return build(config, load_dataset(config))


@pytest.mark.parametrize("prior", ["pinwheel", "swiss_roll_noisy", "less_noisy_square"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_posterior_and_objective(method, prior):
    experiment = built(f"method={method}", f"prior={prior}")
    (phase,) = experiment.phases
    family, objective = METHODS[method]
    assert type(experiment.posterior) is family and type(phase.objective) is objective
    x = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert all(math.isfinite(float(update.terms().total().detach())) for update in phase.objective.updates(x, Progress(1, 2), Draws(0)))


@pytest.mark.parametrize("method", [name for name, (_, objective) in METHODS.items() if objective is objectives.ELBO])
def test_the_importance_weighted_bound_trains_every_method_with_a_density(method):
    beta = ["method.beta=1"] if method == "beta_vae" else []
    experiment = built(f"method={method}", "method.objective=iwae", "method.num_samples=3", *beta)
    (update,) = experiment.phases[0].objective.updates(torch.ones(2, 8, 8), Progress(1, 2), Draws(0))
    assert math.isfinite(float(update.terms().total().detach()))


def test_beta_is_a_factor_of_the_kl_weight():
    weights = [built(f"method={method}", "recipe.kl.kind=constant").phases[0].objective.kl.weight for method in ("vae", "beta_vae")]
    assert weights == [1.0, 4.0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=aae", "method.objective=elbo"], r"method\.objective: expected adversarial or wae, for the adversarial posterior[^\n]*no density"),
        (["method=aae", "method.objective=iwae"], r"method\.objective: expected adversarial or wae"),
        (["method=planar", "method.objective=ddvi"], r"method\.objective: expected elbo, iwae[^\n]*ddvi for planar"),
        (["method=iwae", "method.beta=2"], r"method\.beta: expected 1 unless"),
        (["method=vae", "method.weight=3"], r"method\.weight: expected null unless"),
        (["method=wae", "method.num_samples=3"], r"method\.num_samples: expected 1"),
        (["method=vae", "method.posterior=plannar"], r"method\.posterior: expected one of[^\n]*did you mean planar"),
        (["method=hamiltonian", "prior=swiss_roll_noisy", "prior.options.noise=0"], r"prior: expected a density[^\n]*swiss_roll_noisy"),
        (["prior.kernel_width=-0.1"], r"prior\.kernel_width: expected a width of at least 0, got -0\.1"),
        (["method=m2", "prior.kernel_width=0.03"], r"prior: expected gaussian without a kernel_width"),
    ],
)
def test_wrong_combinations_say_what_would_work(overrides, words):
    with pytest.raises(InputError, match=rf"^{words}"):
        built(*overrides)


@pytest.mark.parametrize("method", ["aae", "wae"])
def test_evaluation_of_an_implicit_posterior_leaves_its_bounds_out(method, capsys, tmp_path):
    config = compose([f"method={method}", "evaluation.limit=20", "evaluation.prior_samples=200", "prior.resolution=10"])
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    figures = evaluate(config, experiment, dataset)
    assert {"evidence", "knn_accuracy", "latent_nll", "mmd"} <= figures.keys()
    assert not {"elbo", "iwae", "gap", "elbo_released"} & figures.keys()
    print_result(_Result(figures, tmp_path))
    assert "no ELBO, IWAE or gap: this posterior has no density" in capsys.readouterr().out


class _Result:
    """What `print_result` reads of a run."""

    def __init__(self, figures, path):
        self.metrics, self.figures, self.folder = figures, [], type("Folder", (), {"path": path})
