"""Options of an experiment as dataclasses: data, prior, method and recipe, with one default each.

`ddvi_fast.config.schema.Config` adds the options of a run. The files of `ddvi_fast/config/conf/` hold what differs from these defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.pairs import Sleep


@dataclass
class NetworkOptions:
    """Options of an encoder or decoder."""

    kind: str = "mlp"  # "mlp", or "conv", the released code's network for images of shape 3 x 32 x 32
    hidden: list[int] = field(default_factory=lambda: [256, 256])  # widths of the hidden layers; those after the convolutions of a conv encoder
    activation: str = "relu"  # "relu", "leaky_relu", "silu" or "tanh"
    dropout: float = 0.0  # dropout rate after each hidden layer of an mlp in training; in a decoder only with the released recipe


@dataclass
class GenotypeOptions:
    """Options of the data sets `1kg` and `genomes`."""

    features: str = "components"  # "components" (principal components) or "counts" of the variants themselves
    num_components: int = 20  # number of principal components
    min_frequency: float = 0.01  # smallest frequency of a variant's rarer allele, where a file is read
    label: str | None = "population"  # column of the labels; null for none
    held_out: float = 0.2  # fraction of test samples; 0 trains on all samples and tests on the same


@dataclass
class DatasetOptions:
    """Options of a data set: its likelihood, networks and labels."""

    name: str = "digits"
    likelihood: str = "bernoulli"  # "bernoulli", "gaussian" or "binomial"
    likelihood_options: dict[str, Any] = field(default_factory=dict)  # arguments of the likelihood
    encoder: NetworkOptions = field(default_factory=NetworkOptions)
    decoder: NetworkOptions = field(default_factory=NetworkOptions)
    genotypes: GenotypeOptions = field(default_factory=GenotypeOptions)
    flip: bool = False  # mirror half of the training images
    binarize: bool = False  # draw black and white pixels from the shades of images: of training images in every batch, of test images once
    validation: float = 0.0  # fraction of the training examples that is held out and evaluated in place of the test set; 0 for the test set
    labels: Any = 100  # labels that a semi-supervised method sees: a number, a fraction below 1, or "released" (11,000 of MNIST)


@dataclass
class PriorOptions:
    """Options of the prior."""

    name: str = "pinwheel"
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the prior
    kernel_width: float = 0.0  # width of a Gaussian kernel that smooths the model's prior; the released code's estimate has about 0.03
    resolution: int = 200  # most quadrature nodes along each arm or edge


@dataclass
class ChainOptions:
    """Options of a diffusion posterior; the path integral sampler has a part of them."""

    num_steps: int = 5  # T
    hidden_dim: int = 128  # width of the denoiser
    context_dim: int = 32  # width of the context vector c(x)
    parametrisation: str | None = None  # prediction of the denoiser: "eps", "x0", "v" or "mean"; "v" if null, and none of them in the encoder's frame
    schedule: str | None = None  # noise schedule; "geometric" if null, and in the encoder's frame "constant" with beta 0.3
    schedule_options: dict[str, Any] = field(default_factory=dict)  # arguments of the schedule
    eta: float = 1.0  # 1 for ancestral sampling, 0 for a deterministic chain
    final_variance: float | None = None  # s_1^2; the posterior variance of step 2 if null
    learn_schedule: bool | None = None  # train the betas; if null, only in the encoder's frame
    learn_variances: bool = True  # train a factor of each step variance
    informed_steps: int = 0  # last steps that see the gradient of the model at the latents they predict; only in the encoder's frame
    frame_updates: int = 0  # updates of the encoder's frame with the gradient of the model; only in the encoder's frame
    informed_classes: str | None = None  # how q(c | x) sees the density at the mean of each class's frame: trained or fitted; for a drawn class


@dataclass
class FlowOptions:
    """Options of a normalizing flow or a Hamiltonian posterior."""

    context_dim: int = 10  # width of the context vector c(x), of an adversarial posterior too
    num_steps: int | None = None  # steps of the flow, or momenta of a Hamiltonian posterior; the family's own number if null
    num_levels: int = 2  # levels of a hierarchical posterior, the latents included
    num_leapfrog: int = 2  # leapfrog steps of a Hamiltonian posterior for each momentum


@dataclass
class SemiOptions:
    """Options of semi-supervised methods."""

    cross_entropy: float = 10.0  # weight of -log q(c | x) on labelled examples
    labelled: float = 1.0  # weight of the bound of labelled examples
    unlabelled: float = 0.1  # share of the unlabelled bound's gradient that reaches q(c | x) in the second half of the epochs
    consistency: float = 10.0  # weight, by then, of the cross-entropy between q(c | x) with input noise and its own argmax without
    batch_fraction: float = 0.5  # labelled examples for each row of the batch
    dropout: float = 0.5  # dropout rate after each hidden layer of the classifier in training
    input_dropout: float = 0.3  # dropout rate of its inputs in training
    noise: float = 0.3  # standard deviation of the Gaussian noise added to its inputs in training


@dataclass
class ClusteringOptions:
    """Options of clustering methods."""

    num_clusters: int = 20  # C
    compare: list[int] = field(default_factory=list)  # numbers of clusters of which the bound of held-out examples chooses; num_clusters if empty
    base_scale: float | None = 0.125  # factor that shrinks the base prior around each centre; if null, 1.2 / num_clusters
    eta: float | None = 1.5  # distance below which centres repel each other; if null, 0.75 sqrt(20 / num_clusters)
    spread_weight: float = 1.0  # weight of that hinge
    centre_lr: float = 10.0  # factor on the learning rate of the centres
    balance: float | None = None  # weight of the divergence of a batch's clusters from equal sizes; if null, 20 with latent clusters, else 0
    latent: bool = False  # a latent cluster with a posterior of its own, instead of the nearest centre


@dataclass
class AdmixtureOptions:
    """Options of `ddvi_admixture`."""

    sources: list[int] = field(default_factory=lambda: [5])  # number of sources, K; of several, held-out genotypes choose
    concentration: float = 1.0  # concentration of the Dirichlet prior of the proportions
    supervised: str | None = None  # table of people who come from one source each; null for sources without names
    label: str | None = None  # column of that table, if it has several


@dataclass
class EmbeddingOptions:
    """Options of t-SNE and UMAP, by the names and with the defaults of their libraries."""

    perplexity: float = 30.0
    n_neighbors: int = 15
    min_dist: float = 0.1


@dataclass
class MethodOptions:
    """Posterior family, objective and task."""

    name: str = "ddvi"
    posterior: str = "diffusion"  # a name of `ddvi_fast.recipes.families.FAMILIES`
    coordinates: str | None = None  # "latent", "prior", "encoder" or "prior+encoder"; if null the last, and the first with the released recipe
    discrete_class: bool = True  # in the prior's coordinates: the class of a prior with classes has a q(c | x), else a noise coordinate carries it
    objective: str = "ddvi"  # "elbo", "iwae", "ddvi", "adversarial" or "wae"
    num_samples: int | None = None  # samples per row; if null 4 where the class is drawn (its score-function gradient compares them), else 1
    reweighted: bool = False  # elbo, ddvi: train the decoder on importance-weighted samples
    doubly_reparametrised: bool = False  # iwae: the doubly reparametrized gradient of Tucker et al. (2019)
    beta: float = 1.0  # elbo, ddvi: factor on the KL weight
    weight: float | None = None  # adversarial, wae: weight of the discriminator or the discrepancy, nats; the objective's own if null
    flow: FlowOptions = field(default_factory=FlowOptions)
    chain: ChainOptions = field(default_factory=ChainOptions)
    sleep: Sleep = field(default_factory=Sleep)
    task: str = "unsupervised"  # "unsupervised", "semi" and "m2" (labels), "clustering", "admixture" (proportions), or "map" (pca, tsne, umap)
    semi: SemiOptions = field(default_factory=SemiOptions)
    clustering: ClusteringOptions = field(default_factory=ClusteringOptions)
    admixture: AdmixtureOptions = field(default_factory=AdmixtureOptions)
    map: EmbeddingOptions = field(default_factory=EmbeddingOptions)


@dataclass
class DefectOptions:
    """Errors of the released code, each of which can be switched on alone to measure its effect."""

    dropout_at_evaluation: bool = False  # dropout stays active in evaluation
    log_var_twice: bool = False  # log q contains log_var where log_var / 2 belongs (methods without a chain)
    unscaled_noise: bool = False  # linear betas from 1e-4 to 0.02 for any T, so that y_T is not standard normal
    standard_normal_top: bool = False  # y_T is compared with N(0, I), which the noising process does not reach

    def any(self) -> bool:
        """Whether one of the defects of the bound is switched on."""
        return self.log_var_twice or self.standard_normal_top


@dataclass
class RecipeOptions:
    """Length of training, learning rates, annealing and initialization."""

    name: str = "default"  # a name of `ddvi_fast.recipes.RECIPES`
    epochs: int = 400
    min_steps: int = 0  # fewest steps: small data sets have more epochs, unless `epochs` states their number, and batches of at most a quarter
    batch_size: int = 128
    lr: float = 3e-3  # peak learning rate of Adam
    lr_schedule: str = "cosine"  # "cosine", "constant" or "step"
    warmup_fraction: float = 0.0  # fraction of the epochs in which the rate rises
    max_norm: float | None = 50.0  # largest norm of the gradient; null for no clipping
    average_decay: float | None = None  # decay of a moving average of the weights that replaces them at the end; null for none
    denoiser_lr: float = 0.3  # factor on the learning rate of the denoiser
    schedule_lr: float = 1.0  # factor on the learning rate of learned schedules and variances
    kl: KLSchedule = field(default_factory=lambda: KLSchedule("constant"))
    prior_blur: float = 0.0  # width by which the prior is blurred at first
    prior_blur_fraction: float = 0.6  # fraction of the epochs by which the blur is gone
    match_prior: bool = True  # initialize the encoder's means with the prior's centre and spread
    defects: DefectOptions = field(default_factory=DefectOptions)
    context_dropout: float | None = None  # dropout rate of the context networks; the encoder's if null
    shared_context: bool | None = None  # compute the context by the encoder, where the family can; if null true, and false with the released recipe
    sigmoid_variances: bool = False  # keep the encoder's variances below 1
    prior_weight: float = 1.0  # released, without a chain: weight of -log p(z) within the KL term
    sleep_updates: int = 3  # released ddvi: sleep updates after each batch
    prior_epochs: int = 0  # released ddvi: epochs of fitting the unconditional chain
    prior_steps: int = 1000  # released ddvi: batches in such an epoch
    warmup_epochs: int = 0  # released ddvi: epochs of the unconditional warm-up
    frozen_fraction: float = 0.0  # released ddvi: fraction of the epochs in which the decoder is frozen


@dataclass
class Options:
    """Everything that defines an experiment: the same options, data and seed give the same weights."""

    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    prior: PriorOptions = field(default_factory=PriorOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    seed: int = 0  # seed of initial weights, order and noise
    latent_dim: int = 2  # D
    epochs: int | None = None  # overrides the recipe's, in every stage it has
