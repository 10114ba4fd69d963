"""The released code's recipe: its stages, its losses, and its defects where they are asked for."""

from __future__ import annotations

from dataclasses import replace

from ddvi_fast import _checks, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.paper.defects import DefectiveELBO
from ddvi_fast.paper.objectives import PixelMean, PriorFit, ReleasedDDVI, ReleasedELBO, WarmUp
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes.build import Recipe, build_default, register
from ddvi_fast.recipes.builder import BOUNDS, Builder
from ddvi_fast.recipes.families import make_diffusion
from ddvi_fast.recipes.options import ChainOptions, Options
from ddvi_fast.recipes.phases import Experiment, Optimisation, Phase

_WARMUP_STEPS, _STEPS, _CONTEXT_DIM = 20, 40, 2
_WARMUP_KL = KLSchedule("constant", 0.01)
_STAGES = ("recipe.prior_epochs", "recipe.prior_steps")
_DDVI_STAGES = ("recipe.sleep_updates", "recipe.warmup_epochs", "recipe.frozen_fraction")
_DECODER = "dataset.decoder.dropout"


def has_stages(options: Options) -> bool:
    """Whether a run is the released DDVI or its warm-up, in stages with chains of their own."""
    return options.recipe.name == "released" and options.method.task == "unsupervised" and options.method.objective == "ddvi"


def has_released_density(options: Options) -> bool:
    """Whether a run has the released loss of a posterior without a chain."""
    return options.recipe.name == "released" and options.method.task == "unsupervised" and options.method.objective in ("elbo", "iwae")


def settings_of(options: Options, names: set[str]) -> set[str]:
    """The settings of a run of the released recipe, from those that its method has."""
    found = set(names)
    if has_stages(options):
        # Its chains are the released code's, whose schedules are not learned.
        found -= {name for name in names if name.startswith(("method.chain", "method.sleep")) or name == "recipe.schedule_lr"}
        found |= {*_STAGES, *(() if options.method.name == "diff_vae" else _DDVI_STAGES)}
    if has_released_density(options):
        found.add("recipe.prior_weight")
    if (has_stages(options) or has_released_density(options)) and options.dataset.decoder.kind == "mlp":
        found.add(_DECODER)
    return found


def build_released(builder: Builder) -> Experiment:
    """The experiment of `recipe=released` for any method.

    DDVI, and its warm-up `diff_vae`, train in stages. Posteriors with a density have the released loss. All other methods have their own
    objective, with the reconstruction averaged over pixels, as in the released code.
    """
    options = builder.options
    if has_stages(options):
        return _chain_stages(builder)
    if has_released_density(options):
        return _density(builder)
    experiment = build_default(builder)
    phases = [replace(phase, objective=PixelMean(phase.objective, builder.dataset.num_dimensions)) for phase in experiment.phases]
    return replace(experiment, phases=phases)


def _chain_stages(builder: Builder) -> Experiment:
    """The three stages (docs/method.md, section 3); encoder and decoder are kept from stage to stage."""
    options, recipe, optimisation = builder.options, builder.options.recipe, builder.optimisation()
    model = builder.model()
    encoder = builder.encoder(2 * builder.latent_dim)
    denoiser = ResidualMLP(builder.latent_dim, 0, _WARMUP_STEPS, draws=builder.weights("warmup_denoiser"))
    warm = Diffusion(encoder, denoiser, schedules.make("linear", _WARMUP_STEPS), parametrisation="eps", eta=0.0, learn_variances=False)
    fit = Optimisation(1e-3, "constant", max_norm=None, factors={})
    prior = Phase("prior", PriorFit(model.prior, warm), builder.epochs(recipe.prior_epochs), fit, steps_per_epoch=recipe.prior_steps)
    if options.method.name == "diff_vae":
        train = Phase("train", WarmUp(model, warm, builder.kl(1.0)), builder.epochs(), optimisation)
        return _without_empty(Experiment(model, warm, [prior, train]))
    warmup = Phase("warmup", WarmUp(model, warm, _WARMUP_KL), builder.epochs(recipe.warmup_epochs), optimisation)
    chain = ChainOptions(_STEPS, 128, _CONTEXT_DIM, "eps", "linear", {}, eta=0.0, learn_schedule=False, learn_variances=False)
    posterior = make_diffusion(builder, encoder, builder.encoder(_CONTEXT_DIM, "context"), chain)
    frozen = round(recipe.frozen_fraction * builder.epochs())
    objective = ReleasedDDVI(model, posterior, builder.kl(1.0), recipe.sleep_updates)
    train = Phase("train", objective, builder.epochs(), optimisation, frozen=[model.decoder], frozen_epochs=frozen)
    return _without_empty(Experiment(model, posterior, [prior, warmup, train]))


def _density(builder: Builder) -> Experiment:
    """A posterior with a density under the released code's loss."""
    options, defects = builder.options, builder.options.recipe.defects
    unset = not (defects.standard_normal_top or defects.unscaled_noise)
    _checks.require(unset, "recipe.defects", "those of a chain only with method=ddvi", options.method.name)
    # log_var_twice belongs to the released loss here, not to the bound that it replaces.
    plain = replace(options, recipe=replace(options.recipe, defects=replace(defects, log_var_twice=False)))
    default = build_default(Builder(plain, builder.dataset))
    samples = options.method.num_samples if options.method.objective == "iwae" else 1
    objective = ReleasedELBO(default.model, default.posterior, builder.kl(1.0), options.recipe.prior_weight, samples, defects.log_var_twice)
    return replace(default, phases=[Phase("train", objective, builder.epochs(), builder.optimisation())])


def _without_empty(experiment: Experiment) -> Experiment:
    """The experiment without the stages that have no epochs."""
    return replace(experiment, phases=[phase for phase in experiment.phases if phase.epochs > 0])


register(
    "released",
    Recipe(build_released, settings_of, (*_STAGES, *_DDVI_STAGES, "recipe.prior_weight", _DECODER), staged=True, module="ddvi_fast.paper"),
)
BOUNDS["defective"] = DefectiveELBO
