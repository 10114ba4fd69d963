"""From a configuration to the released code's experiment: its stages, its losses, its mistakes where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ddvi_fast import _checks, schedules
from ddvi_fast.config.schema import ChainConfig, Config
from ddvi_fast.data import Dataset
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.objectives.elbo import KLSchedule
from ddvi_fast.paper.objectives import PixelMean, PriorFit, ReleasedDDVI, ReleasedELBO, WarmUp
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes import parts
from ddvi_fast.recipes.phases import Experiment, Optimisation, Phase

_WARMUP_STEPS, _STEPS, _CONTEXT_DIM = 20, 40, 2
_WARMUP_KL = KLSchedule("constant", 0.01)


def build_released(config: Config, dataset: Dataset, build: Callable[[Config, Dataset], Experiment]) -> Experiment:
    """The experiment of `recipe=released` for any method.

    DDVI (and `diff_vae`, its warm-up alone) in stages; densities on the released scale; all other methods under their own objective
    with the reconstruction averaged over pixels, as there. `build` makes the experiment of another recipe.
    """
    _checks.require(not config.recipe.joint_score, "recipe.joint_score", "false with recipe=released", True)
    if has_stages(config):
        return _chain_stages(config, dataset)
    if has_released_density(config):
        return _density(config, dataset, build)
    experiment = build(replace(config, recipe=replace(config.recipe, name="default")), dataset)
    phases = [replace(phase, objective=PixelMean(phase.objective, dataset.num_dimensions)) for phase in experiment.phases]
    return replace(experiment, phases=phases)


def has_stages(config: Config) -> bool:
    """Whether a run is the released recipe's DDVI or its warm-up, in stages with chains of their own."""
    return config.recipe.name == "released" and config.method.task == "unsupervised" and config.method.objective == "ddvi"


def has_released_density(config: Config) -> bool:
    """Whether a run has the released recipe's loss of a posterior without a chain."""
    return config.recipe.name == "released" and config.method.task == "unsupervised" and config.method.objective in ("elbo", "iwae")


def _chain_stages(config: Config, dataset: Dataset) -> Experiment:
    """The three stages (docs/method.md, section 3); encoder and decoder carry over from stage to stage."""
    recipe = config.recipe
    model = parts.build_model(config, dataset)
    encoder = parts.make_encoder(config, dataset, 2 * config.latent_dim, parts.ENCODER)
    first_denoiser = ResidualMLP(config.latent_dim, 0, _WARMUP_STEPS, draws=parts.place_of(config, parts.WARMUP_DENOISER))
    warm = Diffusion(encoder, first_denoiser, schedules.make("linear", _WARMUP_STEPS), parametrisation="eps", eta=0.0)
    optimisation = parts.make_optimisation(recipe)
    prior_epochs = parts.stage_epochs(config, recipe.prior_epochs)
    prior = Phase("prior", PriorFit(model.prior, warm), prior_epochs, Optimisation(1e-3, "constant"), steps_per_epoch=recipe.prior_steps)
    if config.method.name == "diff_vae":
        warmup = Phase("train", WarmUp(model, warm, parts.make_kl(recipe.kl)), parts.num_epochs(config), optimisation)
        return _staged(Experiment(model, warm, [prior, warmup]))
    warmup = Phase("warmup", WarmUp(model, warm, _WARMUP_KL), parts.stage_epochs(config, recipe.warmup_epochs), optimisation)
    chain = ChainConfig(_STEPS, 128, _CONTEXT_DIM, "eps", "linear", {}, eta=0.0, learn_schedule=False, learn_variances=False)
    posterior = parts.make_diffusion(config, chain, dataset, encoder)
    frozen = round(recipe.frozen_fraction * parts.num_epochs(config))
    objective = ReleasedDDVI(model, posterior, parts.make_kl(recipe.kl), recipe.sleep_updates)
    train = Phase("train", objective, parts.num_epochs(config), optimisation, frozen=[model.decoder], frozen_epochs=frozen)
    return _staged(Experiment(model, posterior, [prior, warmup, train]))


def _density(config: Config, dataset: Dataset, build: Callable[[Config, Dataset], Experiment]) -> Experiment:
    """A posterior with a density under the released code's loss."""
    recipe, method = config.recipe, config.method
    unset = not (recipe.defects.standard_normal_top or recipe.defects.unscaled_noise)
    _checks.require(unset, "recipe.defects", "those of a chain only with method=ddvi", method.name)
    default = build(replace(config, recipe=replace(recipe, name="default", defects=replace(recipe.defects, log_var_twice=False))), dataset)
    samples = method.num_samples if method.objective == "iwae" else 1
    objective = ReleasedELBO(default.model, default.posterior, parts.make_kl(recipe.kl), recipe.prior_weight, samples, recipe.defects.log_var_twice)
    return replace(default, phases=[Phase("train", objective, parts.num_epochs(config), parts.make_optimisation(recipe))])


def _staged(experiment: Experiment) -> Experiment:
    """Without the stages that have no epochs."""
    return replace(experiment, phases=[phase for phase in experiment.phases if phase.epochs > 0])
