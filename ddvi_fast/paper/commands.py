"""Names of the released code's command line, and the settings that they mean here.

`./run.sh DATASET METHOD PRIOR [name=value ...]` runs the experiment of these names with the released networks and hyperparameters,
warm-up included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddvi_fast import _checks
from ddvi_fast.config.names import read

UNSUPERVISED, SEMI = "unsupervised", "semi-supervised"


@dataclass(frozen=True)
class PaperDataset:
    """A data set of the paper: its task, and its settings as overrides."""

    task: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PaperMethod:
    """A method of the paper: its task, and the method here whose released recipe it has."""

    task: str
    method: str


_MNIST = (
    "dataset=mnist",
    "dataset.encoder.activation=leaky_relu",
    "dataset.encoder.dropout=0.2",
    "dataset.decoder.activation=leaky_relu",
)
# With scale 8^-1/2, minus the log-likelihood is the squared error of data scaled to [-1, 1], which the released code minimizes.
_CIFAR = (
    "dataset=cifar10",
    "dataset.encoder.activation=leaky_relu",
    "dataset.encoder.dropout=0.2",
    "dataset.likelihood_options.scale=0.35355339",
    "dataset.likelihood_options.learn_scale=false",
)
DATASETS = {
    "mnist": PaperDataset(UNSUPERVISED, _MNIST),
    "cifar": PaperDataset(UNSUPERVISED, _CIFAR),
    "mnist_semi": PaperDataset(SEMI, (*_MNIST, "dataset.labels=1000")),
    "cifar_semi": PaperDataset(SEMI, (*_CIFAR, "dataset.labels=0.2")),
}
METHODS = {
    "diff_vae_warmup": PaperMethod(UNSUPERVISED, "ddvi"),
    "diff_vae": PaperMethod(UNSUPERVISED, "diff_vae"),
    "vae": PaperMethod(UNSUPERVISED, "vae"),
    "iaf_vae": PaperMethod(UNSUPERVISED, "iaf"),
    "h_iaf_vae": PaperMethod(UNSUPERVISED, "h_iaf"),
    "iwae": PaperMethod(UNSUPERVISED, "iwae"),
    "aae": PaperMethod(UNSUPERVISED, "aae"),
    "diff_vae_warmup_semi": PaperMethod(SEMI, "ddvi_semi"),
    "vae_semi": PaperMethod(SEMI, "vae_semi"),
    "iaf_vae_semi": PaperMethod(SEMI, "iaf_semi"),
    "aae_semi": PaperMethod(SEMI, "aae_semi"),
}
PRIORS = {"pinwheel": "pinwheel", "swiss_roll": "swiss_roll_noisy", "less_noisy_square": "less_noisy_square"}
# Settings of single pairs of data set and method.
_PARTICULAR = {
    **{("mnist", name): ("dataset.decoder.dropout=0.2",) for name in ("diff_vae_warmup", "diff_vae", "vae", "iaf_vae", "h_iaf_vae", "iwae")},
    ("mnist_semi", "diff_vae_warmup_semi"): ("method.chain.num_steps=100",),
    ("mnist", "aae"): ("method.weight=1",),
    ("cifar", "aae"): ("method.weight=1",),
    ("cifar", "diff_vae_warmup"): ("recipe.context_dropout=0.2",),
    ("cifar_semi", "diff_vae_warmup_semi"): ("method.chain.num_steps=100", "recipe.kl.weight=0.5"),
}


def overrides_of(dataset: str, method: str, prior: str, further: Sequence[str] = ()) -> list[str]:
    """The settings of the paper's three names as overrides, followed by `further` ones, which take precedence.

    Raises:
        InputError: An unknown name, with the nearest valid ones, a method of another task than the data set's, or bad further settings.

    Example:
        >>> overrides_of("mnist", "vae", "pinwheel", ["epochs=1"])[-5:]
        ['prior=pinwheel', 'recipe=released', 'dataset.decoder.dropout=0.2', 'run_dir=runs/mnist-vae-pinwheel-seed0', 'epochs=1']
    """
    data = DATASETS[_checks.choice(dataset, DATASETS, "DATASET")]
    ours = METHODS[_checks.choice(method, METHODS, "METHOD")]
    our_prior = PRIORS[_checks.choice(prior, PRIORS, "PRIOR")]
    fitting = [name for name, other in METHODS.items() if other.task == data.task]
    _checks.require(ours.task == data.task, "METHOD", f"one of the {data.task} ones, for {dataset} ({', '.join(fitting)})", method)
    replaced = read(further)
    seed = replaced.get("seed", 0)
    names = [*data.overrides, f"method={ours.method}", f"prior={our_prior}", "recipe=released", f"run_dir=runs/{dataset}-{method}-{prior}-seed{seed}"]
    particular = _PARTICULAR.get((dataset, method), ())
    return [name for name in (*names[:-1], *particular, names[-1]) if name.partition("=")[0] not in replaced] + list(further)
