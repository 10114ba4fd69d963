"""Tests of the assembly of experiments: parts, initial weights, refused options."""

import pytest
import torch

from ddvi_fast.config.names import choices
from ddvi_fast.objectives import DDVI, ELBO, IWAE
from ddvi_fast.rng import Draws


@pytest.mark.parametrize(("method", "objective"), [("ddvi", ELBO), ("vae", ELBO), ("iwae", IWAE), ("iaf", ELBO)])
@pytest.mark.parametrize("prior", choices("prior"))
def test_every_method_takes_every_prior(built, finite_updates, method, objective, prior):
    (phase,) = built(f"method={method}", f"prior={prior}").phases
    assert isinstance(phase.objective, DDVI) and isinstance(phase.objective.wake, objective)
    finite_updates(phase.objective)


@pytest.mark.parametrize(
    ("overrides", "reweighted"),
    [
        (["method.num_samples=3"], False),
        (["method.num_samples=3", "method.reweighted=true"], True),
        ([], False),
        (["method=vae", "method.num_samples=3"], False),
        (["method=vae", "method.num_samples=3", "method.reweighted=true"], True),
        (["method=ddvi_clustering"], True),
    ],
)
def test_several_samples_are_reweighted_where_told(built, overrides, reweighted):
    objective = built(*overrides).phases[0].objective
    objective = getattr(objective, "inner", objective)
    assert getattr(objective, "wake", objective).reweighted is reweighted


def test_the_encoder_starts_with_the_priors_centre_and_spread(assembled):
    _, dataset, experiment = assembled("prior=square", "method.coordinates=latent")
    means = experiment.posterior.encode(dataset.inputs()).mean
    target = experiment.model.prior.sample(4096)
    torch.testing.assert_close(means.mean(0), target.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(means.std(0), target.std(0), atol=0.05, rtol=0)


@pytest.mark.parametrize("prior", ["pinwheel", "swiss_roll_noisy", "square", "gaussian"])
def test_a_kernel_width_makes_the_models_prior_that_much_wider(built, prior):
    thin, narrower, wide, wider = (built(f"prior={prior}", f"prior.kernel_width={width}").model.prior for width in (0, 0.2, 0.3, 0.45))
    noise = 0.3 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    there = thin.sample(20_000, Draws(1)) + noise
    torch.testing.assert_close(wide.sample(20_000, Draws(2)).std(0), there.std(0), atol=0.04, rtol=0)
    # The density belongs to the samples: no other one finds them likelier.
    assert all(wide.log_prob(there).mean() > other.log_prob(there).mean() for other in (narrower, wider))


def test_a_coarser_schedule_has_the_noise_of_the_whole_one_where_it_stops(built):
    experiment = built("method.coordinates=latent", "method.chain.num_steps=12")
    whole = experiment.posterior.schedule.noise_variances
    experiment.posterior.use_steps(4)
    torch.testing.assert_close(experiment.posterior.schedule.noise_variances, whole[[2, 5, 8, 11]])


def test_networks_of_one_run_start_apart_and_follow_the_seed(built):
    first, again, other = (built(f"seed={seed}").posterior for seed in (0, 0, 1))
    drawn = {name: part for name, part in first.named_parameters() if part.dim() == 2 and part.requires_grad}
    assert {name.split(".")[0] for name in drawn} == {"trunk", "classifier", "family"}
    for name, part in drawn.items():
        assert torch.equal(part, again.get_parameter(name))
        assert not part.any() or not torch.equal(part, other.get_parameter(name)), name
    separate = built("recipe.shared_context=false", "method.coordinates=latent").posterior
    assert not torch.equal(separate.encoder.layers[0].weight, separate.context_encoder.layers[0].weight)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.doubly_reparametrised=true"], "doubly_reparametrised"),
        (["latent_dim=3"], "latent_dim"),
        (["method.sleep.num_updates=2"], "num_updates"),
        (["method=diff_vae"], "recipe"),
        (["recipe.lr=-1"], "lr"),
        (["method.reweighted=true", "method.num_samples=1"], "num_samples"),
        (["method=iwae", "method.reweighted=true"], "reweighted"),
        (["dataset.encoder.activation=gelu"], "activation"),
        (["method=vae", "method.objective=ddvi"], "method.objective: expected elbo, iwae, adversarial or wae, for a posterior other than diffusion"),
        (["method=aae", "method.objective=elbo"], r"^method\.objective: expected adversarial or wae, for the adversarial posterior, .* no density"),
        (["method=aae", "method.objective=iwae"], r"^method\.objective: expected adversarial or wae"),
        (["method=planar", "method.objective=ddvi"], r"^method\.objective: expected elbo, iwae.*ddvi for planar"),
        (["method=iwae", "method.beta=2"], r"^method\.beta: expected 1 unless"),
        (["method=vae", "method.weight=3"], r"^method\.weight: expected null unless"),
        (["method=wae", "method.num_samples=3"], r"^method\.num_samples: expected 1"),
        (["method=vae", "method.posterior=plannar"], r"^method\.posterior: expected one of.*did you mean planar"),
        (
            ["method=hamiltonian", "prior=swiss_roll_noisy", "prior.options.noise=0", "method.coordinates=latent"],
            r"^prior: expected a density.*swiss_roll_noisy",
        ),
        (["prior.kernel_width=-0.1"], r"^prior\.kernel_width: expected a width of at least 0, got -0\.1"),
        (["method=m2", "prior.kernel_width=0.03"], "^prior: expected gaussian without a kernel_width"),
        (["method=ddvi_semi", "prior=gaussian"], "^prior: expected one with classes, got a Gaussian prior.*pinwheel"),
        (["method=ddvi_semi", "prior.options.num_classes=5"], "prior.options.num_classes: expected 10, as digits has, got 5"),
        (["method=ddvi_semi", "dataset.labels=2500"], "labels: expected at most 1400, the number of training examples, got 2500"),
        (["method=ddvi_semi", "dataset.labels=5"], "labels: expected at least 10, one for each class, got 5"),
        (["method=ddvi_semi", "dataset.labels=released"], "released needs all of MNIST"),
        (["method=ddvi_semi", "method.posterior=hamiltonian", "method.objective=elbo"], "method.posterior: expected one of gaussian"),
        (["method=ddvi_semi", "method.objective=iwae"], "method.objective: expected one of elbo, ddvi, adversarial"),
        (["method=ddvi_semi", "method.task=supervised"], "method.task: expected one of"),
        (["method=aae_semi", "method.objective=elbo"], "method.objective"),
        (["method=ddvi_clustering", "method.clustering.num_clusters=0"], "num_centres"),
        (["method=ddvi_clustering", "method.clustering.eta=0"], "clustering.eta"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(built, one_line, overrides, words):
    one_line(lambda: built(*overrides), words)
