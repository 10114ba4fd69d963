"""Semi-supervised objectives: exact values where the posterior is exact, expectations by sums over classes, terms by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from ddvi_fast import InputError, likelihoods, priors, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP, NoisyInput
from ddvi_fast.objectives import ELBO, IWAE, Progress, WakeSleep
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.adversarial_classes import AdversarialSemiSupervised
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.pairs import PairFit, Sleep
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised, class_log_joint_bound
from ddvi_fast.posteriors import Adversarial, Gaussian
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassMLP, PerClass, class_major
from ddvi_fast.rng import Draws
from tests.class_models import CLASSES, DATA_DIM, LATENT_DIM, exact_posterior, log_joint, make_model, observations, placed
from tests.linear_gaussian import EXACT_PRIOR
from tests.objectives.test_drawn_class import exact_bound

HALFWAY = Progress(5, 10)
FULL = KLSchedule("constant")
NO_PAIRS = Sleep(0.0, 0.0, decoder=0.0, classes=0.0)


def semi(
    whole: ClassConditional, examples: LabelledExamples | None = None, weights: ClassWeights = ClassWeights(), *, model=None, sleep=NO_PAIRS,
    num_samples: int = 2, kl: KLSchedule = FULL,
) -> SemiSupervised:  # fmt: skip
    """The objective with the exact prior while training."""
    model = make_model() if model is None else model
    return SemiSupervised(WakeSleep(ELBO(model, whole, kl, num_samples, EXACT_PRIOR), sleep), examples, weights)


def labelled(n: int = 12) -> LabelledExamples:
    return LabelledExamples(observations(n, seed=9), torch.arange(n) % CLASSES, CLASSES)


def test_with_the_exact_posterior_the_terms_are_the_evidence():
    objective, x = semi(exact_posterior()), observations(15)
    values = objective.unlabelled_terms(x, HALFWAY, Draws(1)).values
    # Whatever class is drawn, the weight of the sample is the evidence.
    bound = -(values["reconstruction"] + values["kl"])
    torch.testing.assert_close(bound.double(), torch.logsumexp(log_joint(x), 0), rtol=0, atol=2e-4)
    labels = torch.arange(15) % CLASSES
    values = objective.labelled_terms(x, labels, Draws(1))
    joint = -(values["labelled_reconstruction"] + values["labelled_kl"]) - math.log(CLASSES)
    torch.testing.assert_close(joint.double(), log_joint(x).gather(0, labels.unsqueeze(0))[0], rtol=0, atol=2e-4)
    posterior_of_class = torch.log_softmax(log_joint(x), 0).gather(0, labels.unsqueeze(0))[0]
    torch.testing.assert_close(-values["cross_entropy"].double(), posterior_of_class, rtol=0, atol=1e-4)
    torch.testing.assert_close(class_log_joint_bound(make_model(), objective.posterior, x, 3).double(), log_joint(x), rtol=0, atol=2e-4)


@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_the_expected_bound_is_the_one_summed_over_classes(coordinates):
    model, x = make_model().double(), observations(4).double()
    whole = placed("gaussian", coordinates, model.prior).double()
    with torch.no_grad():
        values = semi(whole, model=model, num_samples=4000).unlabelled_terms(x, HALFWAY, Draws(1)).values
        drawn = whole.log_weights(model, x, 4000, Draws(1))
        exact = exact_bound(whole, x, 1.0)
    bound = -(values["reconstruction"] + values["kl"])
    assert bool(((bound - exact).abs() < 4 * drawn.std(0) / math.sqrt(4000)).all())


@pytest.mark.parametrize("name", ["gaussian", "iaf", "diffusion"])
@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_the_bound_stays_below_the_evidence(name, coordinates):
    objective, x = semi(placed(name, coordinates, make_model().prior), num_samples=2000), observations(30)
    with torch.no_grad():
        values = objective.unlabelled_terms(x, HALFWAY, Draws(1)).values
        drawn = objective.posterior.log_weights(make_model(), x, 2000, Draws(1))
    error = drawn.double().std(0) / math.sqrt(2000)
    bound = -(values["reconstruction"] + values["kl"]).double()
    assert bool((bound < torch.logsumexp(log_joint(x), 0) + 4 * error).all())
    torch.testing.assert_close(bound, drawn.double().mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_labelled_terms_by_hand(coordinates):
    model, x, draws = make_model(), observations(6), Draws(2, 30)
    whole, labels = placed("gaussian", coordinates, model.prior), torch.tensor([0, 2, 1, 1, 0, 2])
    values = semi(whole).labelled_terms(x, labels, draws)
    mean, log_var = (part[labels, torch.arange(6)] for part in whole.family.encoder(x).chunk(2, -1))
    q = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    u = q.mean + q.stddev * rng.normal(draws, (1, 1, 6, LATENT_DIM), rng.START)[0, 0]
    z = model.prior.means[labels] + model.prior.scale * u if whole.pushes else u
    if whole.pushes:
        log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(1)
    else:
        log_prior = torch.distributions.Normal(model.prior.means[labels], model.prior.scale).log_prob(u).sum(1)
    torch.testing.assert_close(values["labelled_kl"], q.log_prob(u).sum(1) - log_prior, rtol=1e-4, atol=1e-4)
    likelihood = torch.distributions.Normal(model.decoder(z), 0.7).log_prob(x).sum(1)
    torch.testing.assert_close(values["labelled_reconstruction"], -likelihood, rtol=1e-4, atol=1e-4)
    cross_entropy = torch.nn.functional.cross_entropy(whole.classifier(x), labels, reduction="none")
    torch.testing.assert_close(values["cross_entropy"], cross_entropy)


def test_all_terms_and_weights_of_a_batch():
    weights = ClassWeights(cross_entropy=3.0, labelled=0.5, consistency=4.0, batch_fraction=0.5)
    sleep = Sleep(0.3, 0.4, decoder=0.6, classes=0.7)
    whole, x, draws = placed("diffusion", "prior+encoder", make_model().prior), observations(12), Draws(1)
    objective = semi(whole, labelled(), weights, sleep=sleep, kl=KLSchedule("constant", 0.8))
    terms = objective.terms(x, Progress(2.5, 10), draws)
    assert terms.weights == {
        "reconstruction": 1.0, "kl": 0.8, "sleep_class": 0.7, "sleep": 0.3, "sleep_top": 0.4, "sleep_decoder": 0.6, "balance": 0.0,
        "consistency": 2.0, "labelled_reconstruction": 0.5, "labelled_kl": 0.4, "cross_entropy": 3.0,
    }  # fmt: skip
    pairs = PairFit(objective.model, objective.posterior, sleep).terms(x, draws)
    for name, value in pairs.values.items():
        torch.testing.assert_close(terms.values[name], value)
    own = draws.lane("labelled")
    expected = objective.labelled_terms(*objective.labelled.draw(2, own), own)
    for name, value in expected.items():
        torch.testing.assert_close(terms.values[name], value)
        assert value.shape == (6,)


def test_labelled_examples_are_drawn_evenly_and_by_their_place_in_the_run():
    x = torch.arange(9.0).unsqueeze(1)
    examples = LabelledExamples(x, torch.tensor([2, 0, 1, 0, 0, 1, 2, 0, 0]), 3)
    seen: dict[int, int] = {}
    for step in range(400):
        batch, labels = examples.draw(2, Draws(1, 6 * step))
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        for value in batch.flatten().int().tolist():
            seen[value] = seen.get(value, 0) + 1
    for members in ([1, 3, 4, 7, 8], [2, 5], [0, 6]):
        expected = 800 / len(members)
        assert all(abs(seen[member] - expected) < 4 * math.sqrt(expected) for member in members)
    again, other = examples.draw(2, Draws(1, 6))[0], examples.draw(2, Draws(2, 6))[0]
    assert torch.equal(examples.draw(2, Draws(1, 6))[0], again) and not torch.equal(again, other)


@pytest.mark.parametrize("name", ["gaussian", "iaf", "diffusion"])
@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_one_update_trains_everything(name, coordinates):
    model = make_model()
    model.decoder.requires_grad_(True)
    sleep = Sleep(0.25, 0.25 if name == "diffusion" else 0.0)
    objective = semi(placed(name, coordinates, model.prior), labelled(), ClassWeights(batch_fraction=0.5), model=model, sleep=sleep)
    (update,) = objective.train().updates(observations(12), HALFWAY, Draws(0))
    terms = update.terms()
    terms.total().backward()
    assert all(bool(torch.isfinite(value).all()) for value in terms.values.values())
    assert terms.values["reconstruction"].shape == (12,) and terms.values["cross_entropy"].shape == (6,)
    idle = [key for key, parameter in objective.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert idle == []


def test_the_classifier_follows_the_unlabelled_bound_by_its_share():
    whole, x = placed("gaussian", "prior", make_model().prior), observations(8)
    gradients = {}
    for share, epoch in ((1.0, 5), (0.25, 5), (1.0, 1.25), (0.0, 5)):
        objective = semi(whole, labelled(), ClassWeights(unlabelled=share))
        values = objective.unlabelled_terms(x, Progress(epoch, 10), Draws(0)).values
        loss = values["reconstruction"].mean() + values["kl"].mean()
        gradients[share, epoch] = torch.autograd.grad(loss, whole.classifier.layers[0].weight)[0]
    plain = ELBO(make_model(), whole, FULL, 2, EXACT_PRIOR).terms(x, HALFWAY, Draws(0)).total()
    torch.testing.assert_close(gradients[1.0, 5], torch.autograd.grad(plain, whole.classifier.layers[0].weight)[0])
    torch.testing.assert_close(gradients[0.25, 5], 0.25 * gradients[1.0, 5])
    torch.testing.assert_close(gradients[1.0, 1.25], 0.25 * gradients[1.0, 5])
    assert not gradients[0.0, 5].any() and gradients[1.0, 5].any()
    # Without labelled examples q(c | x) takes all of it from the start.
    values = semi(whole, None, ClassWeights(unlabelled=0.25)).unlabelled_terms(x, Progress(0, 10), Draws(0)).values
    whole_share = torch.autograd.grad(values["reconstruction"].mean() + values["kl"].mean(), whole.classifier.layers[0].weight)[0]
    torch.testing.assert_close(whole_share, gradients[1.0, 5])


def test_noisy_predictions_agree_with_the_quiet_choice():
    whole, x, draws = placed("gaussian", "prior", make_model().prior), observations(30), Draws(7)
    whole.classifier = NoisyInput(whole.classifier, noise=1.0)
    objective = semi(whole, weights=ClassWeights(consistency=4.0)).train()
    terms = objective.terms(x, Progress(2.5, 10), draws)
    noisy = torch.log_softmax(whole.classifier(x, draws.importance(2)), 1)
    choice = whole.classifier(x).argmax(1)
    torch.testing.assert_close(terms.values["consistency"], torch.nn.functional.nll_loss(noisy, choice, reduction="none"))
    assert terms.weights["consistency"] == 2.0 and bool((noisy.argmax(1) != choice).any())


def test_balance_is_the_divergence_of_the_mean_from_uniform():
    whole, x = placed("gaussian", "prior", make_model().prior), observations(9)
    values = semi(whole, weights=ClassWeights(balance=1.0)).unlabelled_terms(x, HALFWAY, Draws(0)).values
    mean = torch.softmax(whole.classifier(x), 1).mean(0)
    torch.testing.assert_close(values["balance"], (mean * torch.log(mean * CLASSES)).sum())


def test_m2_by_hand():
    prior = priors.OneHotGaussian(style_dim=2, num_classes=3)
    model = LatentVariableModel(prior, MLP(5, [6], 4, draws=Draws(1)), likelihoods.make("bernoulli"))
    encoder = ClassMLP(4, [6], 4, 3, draws=Draws(2))
    whole = ClassConditional(MLP(4, [], 3, draws=Draws(3)), Gaussian(encoder, 2, "prior", prior), prior)
    x, draws = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).round(), Draws(4)
    values = semi(whole, model=model).unlabelled_terms(x, HALFWAY, draws).values
    log_q, bound, normal = torch.log_softmax(whole.classifier(x), 1), torch.zeros(5), torch.distributions.Normal
    labels = torch.searchsorted(log_q.exp().cumsum(1).contiguous(), rng.uniform(draws, (2, 5, 1), rng.CLASSES)[..., 0].mT.contiguous()).mT
    noise = rng.normal(draws, (1, 2, 5, 2), rng.START)[0]
    for sample in range(2):
        own = labels[sample]
        mean, log_var = encoder(x)[own, torch.arange(5)].chunk(2, 1)
        style = mean + torch.exp(0.5 * log_var) * noise[sample]
        z = torch.cat((style, torch.eye(3)[own]), 1)
        likelihood = torch.distributions.Bernoulli(logits=model.decoder(z)).log_prob(x).sum(1)
        ratio = normal(0.0, 1.0).log_prob(style).sum(1) - normal(mean, torch.exp(0.5 * log_var)).log_prob(style).sum(1)
        bound += (likelihood + ratio - math.log(3) - log_q[torch.arange(5), own]) / 2
    torch.testing.assert_close(-(values["reconstruction"] + values["kl"]), bound, rtol=1e-4, atol=1e-4)


def adversarial_objective(examples: LabelledExamples | None) -> AdversarialSemiSupervised:
    encoder = PerClass(MLP(DATA_DIM, [], CLASSES * (LATENT_DIM + 4), draws=Draws(1)), CLASSES)
    whole = ClassConditional(MLP(DATA_DIM, [], CLASSES, draws=Draws(2)), Adversarial(encoder, LATENT_DIM, 4, draws=Draws(3)), make_model().prior)
    return AdversarialSemiSupervised(make_model(), whole, make_discriminator(LATENT_DIM + CLASSES, hidden_dim=8), examples, weight=2.0)


def test_adversarial_terms_by_hand():
    objective, x, draws = adversarial_objective(None).eval(), observations(6), Draws(5)
    wake, opponent = [update.terms() for update in objective.updates(x, HALFWAY, draws)]
    z, probs = objective.posterior.sample_classes(x, 1, draws).z[:, 0], torch.softmax(objective.posterior.classifier(x), 1)
    reconstruction, generator, fake = torch.zeros(6), torch.zeros(6), torch.zeros(6)
    for label in range(CLASSES):
        code = torch.zeros(6, CLASSES).index_fill(1, torch.tensor([label]), 1.0)
        logit = objective.discriminator(torch.cat((z[label], code), 1)).squeeze(1)
        reconstruction -= probs[:, label] * objective.model.log_likelihood(x, z[label])
        generator += probs[:, label] * softplus(-logit)
        fake += probs[:, label] * softplus(logit)
    torch.testing.assert_close(wake.values["reconstruction"], reconstruction)
    torch.testing.assert_close(wake.values["generator"], generator)
    torch.testing.assert_close(opponent.values["discriminator_fake"], fake)
    labels = class_major(CLASSES, 2)
    real = torch.cat((objective.model.prior.sample(6, draws, labels), torch.eye(CLASSES)[labels]), 1)
    torch.testing.assert_close(opponent.values["discriminator_real"], softplus(-objective.discriminator(real)).squeeze(1))
    assert wake.weights["generator"] == 2.0


def test_adversarial_updates_train_one_side_each():
    objective = adversarial_objective(labelled())
    groups = objective.parameter_groups()
    for update in objective.train().updates(observations(6), HALFWAY, Draws(0)):
        objective.zero_grad()
        update.terms().total().backward()
        moved = {name for name, members in groups.items() if any(member.grad is not None and member.grad.any() for member in members)}
        assert moved == {update.group}


def test_noise_on_inputs_is_there_in_training_alone():
    class Same(torch.nn.Module):
        def forward(self, x, draws=None):
            return x

    network, x = NoisyInput(Same(), noise=0.5, dropout=0.25), torch.ones(20_000, 2, 2)
    assert torch.equal(network(x), x)
    values = network(x, Draws(1))
    assert values.shape == x.shape
    # Kept with probability 3/4 and scaled by 4/3: mean 1, variance 1/3, plus the noise's 1/4.
    assert abs(values.mean().item() - 1) < 0.02 and abs(values.var().item() - (1 / 3 + 1 / 4)) < 0.02


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: semi(placed("gaussian", "prior", make_model().prior), sleep=Sleep()), r"^sleep\.top_weight: expected 0 without a chain"),
        (lambda: semi(placed("gaussian", "prior", make_model().prior), num_samples=1), "^inner: expected an ELBO of at least 2 samples, got 1"),
        (lambda: SemiSupervised(WakeSleep(IWAE(make_model(), exact_posterior()), NO_PAIRS)), "^inner: expected an ELBO of at least 2 samples"),
        (lambda: semi(Gaussian(MLP(3, [], 4), 2)), "^posterior: expected a ClassConditional, got 'Gaussian'"),
        (lambda: semi(adversarial_objective(None).posterior), "posterior: expected one with a density"),
        (lambda: LabelledExamples(torch.zeros(3, 2), torch.tensor([0, 1, 1]), 3), r"labels: expected each of 3 classes, got \[1, 2, 0\]"),
        (lambda: LabelledExamples(torch.zeros(3, 2), torch.tensor([0, 1]), 2), "labels: expected 3 labels"),
        (lambda: ClassWeights(cross_entropy=-1), "semi.cross_entropy"),
        (lambda: ClassWeights(unlabelled=1.5), "semi.unlabelled"),
        (lambda: ClassWeights(batch_fraction=0), "semi.batch_fraction"),
    ],
)
def test_refusals(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()
