"""Tests of every method by its name: posterior, objective, evaluation."""

from types import SimpleNamespace

import pytest
import torch

from ddvi_fast import objectives, ops, posteriors
from ddvi_fast._checks import InputError
from ddvi_fast.cli.tables import print_result
from ddvi_fast.config.names import choices
from ddvi_fast.posteriors.base import COORDINATES
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.rng import Draws
from ddvi_fast.training.evaluate import evaluate

METHODS = {
    "ddvi": (posteriors.Diffusion, objectives.ELBO),
    "vae": (posteriors.Gaussian, objectives.ELBO),
    "iwae": (posteriors.Gaussian, objectives.IWAE),
    "iaf": (posteriors.IAF, objectives.ELBO),
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


SMALL = ["dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[16]", "limit=64", "prior.resolution=20"]


@pytest.mark.parametrize("prior", choices("prior"))
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_posterior_and_objective(built, finite_updates, method, coordinates, prior):
    settings = (f"method={method}", f"prior={prior}", f"method.coordinates={coordinates}", *SMALL)
    if prior == "noiseless_swiss_roll" and "prior" not in coordinates and method not in ("aae", "wae"):
        with pytest.raises(InputError, match="density"):
            built(*settings)
        return
    experiment = built(*settings)
    (phase,) = experiment.phases
    family, objective = METHODS[method]
    draws = "prior" in coordinates and prior != "gaussian" and method != "hamiltonian"
    assert isinstance(experiment.posterior, ClassConditional) == draws
    assert type(experiment.posterior.family if draws else experiment.posterior) is family
    assert experiment.posterior.coordinates == coordinates
    assert type(phase.objective.wake if isinstance(phase.objective, objectives.WakeSleep) else phase.objective) is objective
    for update in finite_updates(phase.objective):
        phase.objective.zero_grad()
        update.terms().total().backward()
        gradients = [part.grad for part in phase.objective.parameters() if part.grad is not None]
        assert gradients and all(bool(part.isfinite().all()) for part in gradients)


@pytest.mark.parametrize("method", METHODS)
def test_one_coordinate_can_carry_the_class(built, finite_updates, method):
    experiment = built(f"method={method}", "method.discrete_class=false", *SMALL)
    assert type(experiment.posterior) is METHODS[method][0] and experiment.posterior.latent_dim == 3
    finite_updates(experiment.phases[0].objective)


def test_encoders_without_hidden_layers_have_no_trunk(built, finite_updates):
    experiment = built("dataset.encoder.hidden=[]")
    assert isinstance(experiment.posterior, ClassConditional) and experiment.posterior.trunk is None
    finite_updates(experiment.phases[0].objective)


@pytest.mark.parametrize(("samples", "rows"), [(None, 4), ("1", 1), ("5", 5)])
def test_a_row_goes_through_the_chain_of_its_drawn_class_only(built, monkeypatch, samples, rows):
    """A batch of N rows and K samples has K N rows in the denoiser at each step, not one for each of the ten classes."""
    experiment = built(f"method.num_samples={samples or 'null'}", *SMALL)
    family, seen, at_once = experiment.posterior.family, [], ops.sample_chain
    monkeypatch.setattr(ops, "sample_chain", lambda y, *more, **named: seen.append(y[..., 0].numel()) or at_once(y, *more, **named))
    forward = type(family.denoiser).forward
    monkeypatch.setattr(type(family.denoiser), "forward", lambda self, y, *more: seen.append(y[..., 0].numel()) or forward(self, y, *more))
    x = torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(0))
    (update,) = experiment.phases[0].objective.wake.updates(x, objectives.Progress(1, 2), Draws(0))
    update.terms()
    assert seen == [12 * rows]
    assert family.denoiser.groups is None


@pytest.mark.parametrize("method", [name for name, (_, objective) in METHODS.items() if objective is objectives.ELBO])
def test_the_importance_weighted_bound_trains_every_method_with_a_density(built, finite_updates, method):
    beta = ["method.beta=1"] if method == "beta_vae" else []
    experiment = built(f"method={method}", "method.objective=iwae", "method.num_samples=3", *beta, *SMALL)
    assert len(finite_updates(experiment.phases[0].objective)) == 1


def test_beta_is_a_factor_of_the_kl_weight(built):
    weights = [built(f"method={method}", "recipe.kl.kind=constant").phases[0].objective.wake.kl.weight for method in ("vae", "beta_vae")]
    assert weights == [1.0, 4.0]


@pytest.mark.parametrize("method", ["aae", "wae"])
def test_evaluation_of_an_implicit_posterior_leaves_its_bounds_out(assembled, method, capsys, tmp_path):
    config, dataset, experiment = assembled(f"method={method}", "evaluation.limit=20", "evaluation.prior_samples=200", "prior.resolution=10")
    figures = evaluate(config, experiment, dataset)
    assert {"evidence", "knn_accuracy", "latent_nll", "mmd"} <= figures.keys()
    assert not {"elbo", "iwae", "gap", "elbo_released"} & figures.keys()
    print_result(SimpleNamespace(metrics=figures, figures=[], folder=SimpleNamespace(path=tmp_path, config={"dataset": {}})))
    assert "no ELBO, IWAE or gap: this posterior has no density" in capsys.readouterr().out
