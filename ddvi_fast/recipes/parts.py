"""The parts of an experiment, each from its place in a configuration."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, likelihoods, priors, schedules
from ddvi_fast.config.schema import ChainConfig, Config, KLConfig, MethodConfig, NetworkConfig, RecipeConfig
from ddvi_fast.data import Dataset
from ddvi_fast.data.augment import flip
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import IMAGE_SHAPE, MLP, ConvDecoder, ConvEncoder, SigmoidVariances
from ddvi_fast.objectives import DDVI, ELBO, IWAE, WAE, Adversarial, Objective, Progress
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.ddvi import Sleep
from ddvi_fast.objectives.elbo import KLSchedule
from ddvi_fast.objectives.weights import PriorGuide
from ddvi_fast.paper.defects import DefectiveELBO
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.priors import Prior
from ddvi_fast.recipes import families
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import NoiseSchedule

# Networks of one run draw their initial weights from different places of the same seed.
DECODER, ENCODER, CONTEXT, DENOISER, WARMUP_DENOISER = range(5)
DISCRIMINATOR = 7
_IAF_CONTEXT = 10  # width of its context, as in the released code
IMPLICIT = ("adversarial", "wae")  # objectives without a bound
_INITIAL_LOG_VARIANCE = -2.0  # of q(y_T | x), where its means start with the prior's spread


Network = MLP | ConvEncoder | ConvDecoder | SigmoidVariances


def build_prior(config: Config) -> Prior:
    """The prior that a configuration names."""
    sized = {"dim": config.latent_dim} if config.prior.name == "gaussian" else {}
    prior = priors.make(config.prior.name, **sized, **config.prior.options)
    _checks.require(prior.dim == config.latent_dim, "latent_dim", f"{prior.dim}, as the {config.prior.name} prior has", config.latent_dim)
    _checks.require(config.prior.kernel_width >= 0, "prior.kernel_width", "a width of at least 0", config.prior.kernel_width)
    return prior.blurred(config.prior.kernel_width)


def build_model(config: Config, dataset: Dataset, prior: Prior | None = None) -> LatentVariableModel:
    """The generative half: prior (the configuration's, if not given), decoder, likelihood."""
    prior = build_prior(config) if prior is None else prior
    likelihood = likelihoods.make(config.dataset.likelihood, **config.dataset.likelihood_options)
    decoder = make_network(config, config.dataset.decoder, prior.dim, dataset.num_dimensions, DECODER)
    dataset.initialize_decoder(decoder)
    return LatentVariableModel(prior, decoder, likelihood)


def build_posterior(config: Config, dataset: Dataset, model: LatentVariableModel) -> Posterior:
    """The inference half."""

    def network(outputs: int, place: int) -> Network:
        return make_encoder(config, dataset, outputs, place)

    if config.method.posterior == "diffusion":
        return make_diffusion(config, config.method.chain, dataset, network(2 * config.latent_dim, ENCODER))
    encoder, context = partial(network, place=ENCODER), partial(network, place=CONTEXT)
    draws, still = place_of(config, DENOISER), config.recipe.match_prior
    return families.make(families.Parts(encoder, context, model, config.method, config.latent_dim, draws, still, config.recipe.shared_context))


def make_diffusion(config: Config, chain: ChainConfig, dataset: Dataset, encoder: Network) -> Diffusion:
    context = make_encoder(config, dataset, chain.context_dim, CONTEXT) if chain.context_dim else None
    denoiser = ResidualMLP(
        config.latent_dim,
        chain.context_dim,
        chain.num_steps,
        chain.hidden_dim,
        zero_output=config.recipe.match_prior,
        draws=place_of(config, DENOISER),
    )
    return Diffusion(
        encoder,
        denoiser,
        schedule(config, chain),
        context_encoder=context,
        parametrisation=chain.parametrisation,
        eta=chain.eta,
        final_variance=chain.final_variance,
        learn_schedule=chain.learn_schedule,
        learn_variances=chain.learn_variances,
    )


def make_kl(kl: KLConfig, factor: float = 1.0) -> KLSchedule:
    return KLSchedule(kl.kind, factor * kl.weight, kl.fraction, kl.hold, kl.whole_epochs)


def make_objective(config: Config, model: LatentVariableModel, posterior: Posterior) -> Objective:
    method, recipe = config.method, config.recipe
    kl, guide = make_kl(recipe.kl, method.beta), make_guide(recipe)
    if method.objective == "iwae":
        return IWAE(model, posterior, method.num_samples, method.doubly_reparametrised, kl, guide)
    _checks.require(not method.doubly_reparametrised, "method.doubly_reparametrised", "false unless method.objective is iwae", True)
    if method.objective in IMPLICIT:
        _checks.require(not recipe.joint_score, "recipe.joint_score", "false for an objective without a bound", method.objective)
        return _implicit(config, model, posterior)
    wake = _elbo(config, model, posterior, kl, guide)
    if method.objective == "elbo":
        return wake
    return DDVI(wake, make_sleep(method))


def _implicit(config: Config, model: LatentVariableModel, posterior: Posterior) -> Objective:
    """The objectives that need samples of the posterior and of the prior, and no density of either."""
    weight = {} if config.method.weight is None else {"weight": config.method.weight}
    if config.method.objective == "wae":
        return WAE(model, posterior, **weight)
    return Adversarial(model, posterior, make_discriminator(model.prior.dim, place_of(config, DISCRIMINATOR)), **weight)


def _elbo(config: Config, model: LatentVariableModel, posterior: Posterior, kl: KLSchedule, guide: PriorGuide) -> ELBO:
    """The bound, or what the released code's mistakes make of it."""
    defects = config.recipe.defects
    wrong = {name: True for name in ("log_var_twice", "standard_normal_top") if getattr(defects, name)}
    count, reweighted = config.method.num_samples, config.method.reweighted
    if reweighted is None:
        reweighted = count > 1 and isinstance(posterior, Diffusion)
    return (DefectiveELBO if wrong else ELBO)(model, posterior, kl, count, guide, reweighted, **wrong)


def make_guide(recipe: RecipeConfig) -> PriorGuide:
    limit = (recipe.prior_max_score, recipe.prior_max_score_fraction)
    return PriorGuide(recipe.prior_blur, recipe.prior_blur_fraction, *limit, power=recipe.prior_blur_power, joint=recipe.joint_score)


def make_sleep(method: MethodConfig) -> Sleep:
    return Sleep(**dataclasses.asdict(method.sleep))


def make_optimisation(recipe: RecipeConfig) -> Optimisation:
    factors = {"learned_schedule": recipe.schedule_lr, "log_variance_factors": recipe.schedule_lr, ".denoiser.": recipe.denoiser_lr}
    return Optimisation(recipe.lr, recipe.lr_schedule, recipe.warmup_fraction, recipe.max_norm, factors)


def make_annealing(chain: ChainConfig, posterior: Posterior):
    """Run the chain with few steps at first and twice as many in each later stretch of the first half of the phase."""
    if not isinstance(posterior, Diffusion) or chain.first_num_steps is None:
        return None
    _checks.require(2 <= chain.first_num_steps <= chain.num_steps, "first_num_steps", f"from 2 to {chain.num_steps}", chain.first_num_steps)
    doublings = math.ceil(math.log2(chain.num_steps / chain.first_num_steps))

    def before_epoch(progress: Progress) -> None:
        doubled = math.floor(2 * progress.fraction * (doublings + 1)) if progress.fraction < 0.5 else doublings
        posterior.use_steps(min(chain.num_steps, chain.first_num_steps << min(doubled, doublings)))

    return before_epoch


@torch.no_grad()
def match_prior(encoder: Network, dataset: Dataset, prior: Prior) -> None:
    """Scale and shift the encoder's means so that over the data they start with the prior's centre and spread.

    Means that start in one point leave most of a thin prior far away, and the KL term then pulls all of them together.
    """
    means = encoder(first_examples(dataset))[:, : prior.dim]
    match_spread(encoder.output_layer.weight, encoder.output_layer.bias, means, prior.sample(4096, draws=Draws(0)))


def first_examples(dataset: Dataset) -> Tensor:
    """Some examples, on the CPU: networks are built there, wherever the data are."""
    return dataset.inputs(slice(0, 2048)).cpu()


def match_spread(weight: Tensor, bias: Tensor, means: Tensor, target: Tensor) -> None:
    """Change a last layer [.., H], [..], whose first D outputs are `means` [N, D], in place so that these get centre and spread of `target` [M, D].

    Where D log-variances follow, they start small.
    """
    latent_dim = means.shape[1]
    factor = target.std(0) / means.std(0)
    weight[:latent_dim] *= factor.unsqueeze(1)
    bias[:latent_dim] = (bias[:latent_dim] - means.mean(0)) * factor + target.mean(0)
    if len(weight) == 2 * latent_dim:
        weight[latent_dim:] *= 0.1
        bias[latent_dim:] = _INITIAL_LOG_VARIANCE


def make_encoder(config: Config, dataset: Dataset, outputs: int, place: int, dropout: float | None = None) -> nn.Module:
    """A network from examples of the data set to so many outputs."""
    return dataset.wrap_encoder(make_network(config, config.dataset.encoder, dataset.num_dimensions, outputs, place, dropout))


def make_network(config: Config, network: NetworkConfig, inputs: int, outputs: int, place: int, dropout: float | None = None) -> Network:
    rate = network.dropout if dropout is None else dropout
    if place == CONTEXT and config.recipe.context_dropout is not None:
        rate = config.recipe.context_dropout
    made = _plain_network(network, inputs, outputs, rate, place == DECODER, place_of(config, place))
    top = place == ENCODER and config.recipe.sigmoid_variances
    return SigmoidVariances(made, config.latent_dim) if top else made


def _plain_network(network: NetworkConfig, inputs: int, outputs: int, rate: float, decodes: bool, draws: Draws) -> MLP | ConvEncoder | ConvDecoder:
    _checks.choice(network.kind, ("mlp", "conv"), "kind")
    if network.kind == "mlp":
        return MLP(inputs, network.hidden, outputs, activation=network.activation, dropout=rate, draws=draws)
    pixels = outputs if decodes else inputs
    _checks.require(pixels == math.prod(IMAGE_SHAPE), "kind", f"mlp, for data other than images of {IMAGE_SHAPE}", f"conv for {pixels} values")
    if decodes:
        return ConvDecoder(inputs, draws=draws)
    return ConvEncoder(outputs, network.hidden, activation=network.activation, dropout=rate, draws=draws)


def place_of(config: Config, number: int) -> Draws:
    return Draws(config.seed).importance(number)


def schedule(config: Config, chain: ChainConfig) -> NoiseSchedule:
    """The noising process of a chain; the released code's, whatever T, where its defect is asked for."""
    if config.recipe.defects.unscaled_noise:
        return schedules.make("linear", chain.num_steps)
    return schedules.make(chain.schedule, chain.num_steps, **chain.schedule_options)


def stage_epochs(config: Config, epochs: int) -> int:
    """Epochs of a stage for which the recipe has `epochs`: the run's own, where it has any and the stage is not left out."""
    return epochs if config.epochs is None or epochs == 0 else config.epochs


def num_epochs(config: Config) -> int:
    epochs = stage_epochs(config, config.recipe.epochs)
    _checks.require(epochs >= 1, "epochs", "at least 1", epochs)
    return epochs


def augmentation(config: Config):
    """The training-time augmentation of the data set, or None."""
    if not config.dataset.flip:
        return None
    return flip
