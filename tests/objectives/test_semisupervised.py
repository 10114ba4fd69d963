"""Semi-supervised objectives: exact values where the posterior is exact, sums over classes by hand, grouped sleep against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from ddvi_fast import InputError, likelihoods, ops, priors, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP, NoisyInput
from ddvi_fast.objectives import Progress
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.adversarial_classes import AdversarialSemiSupervised
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised, class_log_joint_bound
from ddvi_fast.objectives.wake_sleep import Sleep, uniform_timesteps
from ddvi_fast.posteriors import Adversarial, Diffusion
from ddvi_fast.posteriors.base import Encoded
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassMLP, OneHotStyle, PerClass, class_major
from ddvi_fast.rng import Draws
from tests.class_models import CLASSES, DATA_DIM, LATENT_DIM, exact_posterior, log_joint, make_model, observations, posterior
from tests.linear_gaussian import EXACT_PRIOR
from tests.posteriors.test_class_conditional import chain_of

HALFWAY = Progress(5, 10)
FULL = KLSchedule("constant")


def labelled(n: int = 12) -> LabelledExamples:
    return LabelledExamples(observations(n, seed=9), torch.arange(n) % CLASSES, CLASSES)


def test_with_the_exact_posterior_the_terms_are_the_evidence():
    objective, x = SemiSupervised(make_model(), exact_posterior(), kl=FULL, guide=EXACT_PRIOR), observations(15)
    values = objective.unlabelled_terms(x, HALFWAY, Draws(1))
    bound = -(values["reconstruction"] + values["kl"] + values["class_kl"])
    torch.testing.assert_close(bound.double(), torch.logsumexp(log_joint(x), 0), rtol=0, atol=2e-4)
    labels = torch.arange(15) % CLASSES
    values = objective.labelled_terms(x, labels, HALFWAY, Draws(1))
    joint = -(values["labelled_reconstruction"] + values["labelled_kl"]) - math.log(CLASSES)
    torch.testing.assert_close(joint.double(), log_joint(x).gather(0, labels.unsqueeze(0))[0], rtol=0, atol=2e-4)
    posterior_of_class = torch.log_softmax(log_joint(x), 0).gather(0, labels.unsqueeze(0))[0]
    torch.testing.assert_close(-values["cross_entropy"].double(), posterior_of_class, rtol=0, atol=1e-4)
    torch.testing.assert_close(class_log_joint_bound(make_model(), objective.posterior, x, 3).double(), log_joint(x), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["gaussian", "iaf", "diffusion"])
def test_the_bound_summed_over_classes_stays_below_the_evidence(name):
    objective, x = SemiSupervised(make_model(), posterior(name), kl=FULL, guide=EXACT_PRIOR, num_samples=300), observations(40)
    with torch.no_grad():
        values = objective.unlabelled_terms(x, HALFWAY, Draws(1))
        bound = -(values["reconstruction"] + values["kl"] + values["class_kl"]).double()
        # The same bound by classes drawn instead of summed: another estimator of the same number.
        drawn = objective.posterior.log_weights(make_model(), x, 3000, Draws(2)).double()
    assert bool((bound < torch.logsumexp(log_joint(x), 0) + 0.1).all())
    error = drawn.std(0) / math.sqrt(3000)
    summed_error = 3 * error  # 300 samples of each class instead
    assert bool(((drawn.mean(0) - bound).abs() < 4 * (error + summed_error)).all())


def test_terms_by_hand_with_a_loop_over_classes():
    model, whole, x, draws = make_model(), posterior("gaussian"), observations(6), Draws(2, 30)
    found = SemiSupervised(model, whole, kl=FULL, guide=EXACT_PRIOR, num_samples=2).unlabelled_terms(x, HALFWAY, draws)
    z, log_ratio = whole.sample_classes(x, 2, draws)
    probs = torch.softmax(whole.classifier(x), 1)
    reconstruction, kl, class_kl = torch.zeros(6), torch.zeros(6), torch.zeros(6)
    for label in range(CLASSES):
        classes = torch.full((2, 6), label)
        reconstruction -= probs[:, label] * model.log_likelihood(x, z[label]).mean(0)
        kl -= probs[:, label] * (model.prior.log_prob(z[label], classes) + log_ratio[label]).mean(0)
        class_kl += probs[:, label] * torch.log(probs[:, label] * CLASSES)
    for name, expected in {"reconstruction": reconstruction, "kl": kl, "class_kl": class_kl}.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def test_the_sleep_term_is_a_loop_over_classes():
    model, whole, x, draws = make_model(), posterior("diffusion", learn_variances=True), observations(12), Draws(3, 60)
    sleep = Sleep(0.5, 0.25, "kl")
    values = SemiSupervised(model, whole, kl=FULL, guide=EXACT_PRIOR, sleep=sleep).sleep_terms(x, draws)
    labels = class_major(CLASSES, 4)
    z = model.prior.sample(12, draws, labels)
    fantasies = model.likelihood.sample(model.decoder(z), draws)
    t = uniform_timesteps(draws, 12, whole.family.schedule.num_steps, z.device)
    family, encoded = whole.family, whole.family.encode(fantasies)
    for row, label in enumerate(labels.tolist()):
        alone = Diffusion(MLP(DATA_DIM, [], 4), chain_of(family, label), family.schedule, context_encoder=MLP(DATA_DIM, [], 2), learn_variances=True)
        mine = Encoded(encoded.mean[label, row : row + 1], encoded.log_var[label, row : row + 1], encoded.context[row : row + 1])
        expected = alone.step_divergence(mine.context, z[row : row + 1], t[row : row + 1], draws.advance(row))
        torch.testing.assert_close(values["sleep"][row], expected[0], rtol=1e-3, atol=1e-3)
    y_T, _ = ops.add_noise(z, torch.full((12,), 4), family.schedule, draws=draws.importance(1))
    rows = torch.arange(12)
    top = ops.gaussian_log_prob(y_T, encoded.mean[labels, rows], encoded.log_var[labels, rows])
    torch.testing.assert_close(values["sleep_top"], -top, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values["sleep_class"], cross_entropy(whole.classifier(fantasies), labels, reduction="none"))


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
def test_one_update_trains_everything(name):
    sleep = Sleep(0.25, 0.25, "kl") if name == "diffusion" else None
    model = make_model()
    model.decoder.requires_grad_(True)
    objective = SemiSupervised(model, posterior(name), labelled(), FULL, weights=ClassWeights(fantasies=0.1, batch_fraction=0.5), sleep=sleep)
    (update,) = objective.train().updates(observations(12), HALFWAY, Draws(0))
    terms = update.terms()
    terms.total().backward()
    assert all(bool(torch.isfinite(value).all()) for value in terms.values.values())
    assert terms.values["reconstruction"].shape == (12,) and terms.values["cross_entropy"].shape == (6,)
    idle = [key for key, parameter in objective.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert idle == []


def test_the_classifier_follows_the_unlabelled_bound_by_its_share():
    model, whole, x = make_model(), posterior("gaussian"), observations(8)
    gradients = {}
    for share, epoch in ((1.0, 5), (0.25, 5), (1.0, 1.25), (0.0, 5)):
        objective = SemiSupervised(model, whole, labelled(), FULL, EXACT_PRIOR, ClassWeights(unlabelled=share))
        values = objective.unlabelled_terms(x, Progress(epoch, 10), Draws(0))
        loss = sum(values[name].mean() for name in ("reconstruction", "kl", "class_kl"))
        gradients[share, epoch] = torch.autograd.grad(loss, whole.classifier.layers[0].weight, retain_graph=True)[0]
    torch.testing.assert_close(gradients[0.25, 5], 0.25 * gradients[1.0, 5])
    torch.testing.assert_close(gradients[1.0, 1.25], 0.25 * gradients[1.0, 5])
    assert not gradients[0.0, 5].any()


def test_noisy_predictions_agree_with_the_quiet_choice():
    whole, x, draws = posterior("gaussian"), observations(30), Draws(7)
    whole.classifier = NoisyInput(whole.classifier, noise=1.0)
    objective = SemiSupervised(make_model(), whole, kl=FULL, guide=EXACT_PRIOR, weights=ClassWeights(consistency=4.0)).train()
    terms = objective.terms(x, Progress(2.5, 10), draws)
    noisy = torch.log_softmax(whole.classifier(x, draws.importance(2)), 1)
    choice = whole.classifier(x).argmax(1)
    torch.testing.assert_close(terms.values["consistency"], torch.nn.functional.nll_loss(noisy, choice, reduction="none"))
    assert terms.weights["consistency"] == 2.0 and bool((noisy.argmax(1) != choice).any())


def test_balance_is_the_divergence_of_the_mean_from_uniform():
    objective = SemiSupervised(make_model(), posterior("gaussian"), kl=FULL, guide=EXACT_PRIOR, weights=ClassWeights(balance=1.0))
    values = objective.unlabelled_terms(x := observations(9), HALFWAY, Draws(0))
    mean = torch.softmax(posterior("gaussian").classifier(x), 1).mean(0)
    torch.testing.assert_close(values["balance"], (mean * torch.log(mean * CLASSES)).sum())


def test_m2_by_hand():
    prior = priors.OneHotGaussian(style_dim=2, num_classes=3)
    model = LatentVariableModel(prior, MLP(5, [6], 4, draws=Draws(1)), likelihoods.make("bernoulli"))
    encoder = ClassMLP(4, [6], 4, 3, draws=Draws(2))
    whole = ClassConditional(MLP(4, [], 3, draws=Draws(3)), OneHotStyle(encoder, 2, 3), prior)
    x, draws = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).round(), Draws(4)
    values = SemiSupervised(model, whole, kl=FULL, guide=EXACT_PRIOR).unlabelled_terms(x, HALFWAY, draws)
    noise = rng.normal(draws, (1, 3, 5, 2), rng.START)[0]
    bound = torch.zeros(5)
    log_q = torch.log_softmax(whole.classifier(x), 1)
    normal = torch.distributions.Normal
    for label in range(3):
        mean, log_var = encoder(x)[label].chunk(2, 1)
        z = mean + torch.exp(0.5 * log_var) * noise[label]
        code = torch.zeros(5, 3).index_fill(1, torch.tensor([label]), 1.0)
        likelihood = torch.distributions.Bernoulli(logits=model.decoder(torch.cat((z, code), 1))).log_prob(x).sum(1)
        each = likelihood + normal(0.0, 1.0).log_prob(z).sum(1) - normal(mean, torch.exp(0.5 * log_var)).log_prob(z).sum(1)
        bound += log_q[:, label].exp() * (each - math.log(3) - log_q[:, label])
    found = -(values["reconstruction"] + values["kl"] + values["class_kl"])
    torch.testing.assert_close(found, bound, rtol=1e-4, atol=1e-4)


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
        (lambda: SemiSupervised(make_model(), posterior("gaussian"), sleep=Sleep()), "sleep: expected None without a diffusion posterior"),
        (lambda: SemiSupervised(make_model(), posterior("diffusion", eta=0.0)), "posterior: expected one with a density"),
        (lambda: SemiSupervised(make_model(), adversarial_objective(None).posterior), "posterior: expected one with a density"),
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
