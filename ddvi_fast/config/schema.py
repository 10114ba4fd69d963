"""The schema of an experiment's configuration; its values stand in `conf/`, one file a choice.

Every field says what it means and in which unit, once, here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class NetworkConfig:
    kind: str = "mlp"  # mlp, or conv: the released code's for images of 3 x 32 x 32
    hidden: list[int] = field(default_factory=lambda: [256, 256])  # widths of the hidden layers; of a conv encoder, after its convolutions
    activation: str = "relu"  # relu, leaky_relu, silu or tanh
    dropout: float = 0.0  # rate after each hidden layer of an mlp, while training; a decoder's in the released recipe alone


@dataclass
class GenotypesConfig:
    features: str = "components"  # principal components, or counts of the variants themselves
    num_components: int = 20
    min_frequency: float = 0.01  # of a variant's rarer allele, where a file is read
    label: str | None = "population"  # the column of labels; null for none
    held_out: float = 0.2  # share of the samples for the test; 0 trains on all samples and tests on the same


@dataclass
class DatasetConfig:
    name: str = "digits"
    likelihood: str = "bernoulli"  # bernoulli, gaussian or binomial
    likelihood_options: dict[str, Any] = field(default_factory=dict)
    encoder: NetworkConfig = field(default_factory=NetworkConfig)
    decoder: NetworkConfig = field(default_factory=NetworkConfig)
    genotypes: GenotypesConfig = field(default_factory=GenotypesConfig)  # of 1kg and genomes
    flip: bool = False  # mirror half of the training images
    labels: Any = 100  # training examples whose label a semi-supervised method sees: a number, a share of all below 1, or released (11,000 of MNIST)


@dataclass
class PriorConfig:
    name: str = "pinwheel"
    options: dict[str, Any] = field(default_factory=dict)
    kernel_width: float = 0.0  # of a Gaussian kernel that blurs the prior of the model itself; the released code's estimate has about 0.03
    resolution: int = 200  # quadrature nodes along each arm or edge


@dataclass
class ChainConfig:
    num_steps: int = 10  # T
    hidden_dim: int = 128  # width of the denoiser
    context_dim: int = 32  # width of c(x)
    parametrisation: str = "v"  # what the denoiser predicts: eps, x0, v or mean
    schedule: str = "geometric"
    schedule_options: dict[str, Any] = field(default_factory=dict)
    eta: float = 1.0  # 1 ancestral sampling, 0 deterministic
    final_variance: float | None = None  # s_1^2; the posterior variance of step 2 if null
    learn_schedule: bool = False  # train the betas
    learn_variances: bool = True  # train a factor of each step variance
    first_num_steps: int | None = None  # T annealing: steps in use at first, doubled until T


@dataclass
class FlowConfig:
    context_dim: int = 10  # width of c(x); of an adversarial posterior too
    num_steps: int | None = None  # steps of the flow, or momenta of a Hamiltonian posterior; its own number if null
    num_levels: int = 2  # of a hierarchical posterior, the latents included
    num_leapfrog: int = 2  # moves of a Hamiltonian posterior for each momentum


@dataclass
class SleepConfig:
    weight: float = 0.25  # of the chain's loss on fantasies
    top_weight: float = 0.25  # of -log q(y_T | x) on fantasies
    loss: str = "kl"  # kl, or the squared, absolute or huber error of the prediction
    alternating: bool = False  # separate sleep updates instead of one joint update
    num_updates: int = 1  # sleep updates a batch, when alternating
    timesteps: int = 1  # steps of the chain that each fantasy teaches
    mixed: float = 0.0  # share of the fantasies whose chain sees another's context at steps of little noise; not with classes
    mixed_noise: float = 0.05  # ratio of noise to signal up to which a step has little noise
    data: float = 0.0  # share of the fantasies replaced by data, each with the prior sample that its likelihood draws; not with classes
    decoder: float = 0.0  # weight of the decoder's own loss on them
    candidates: int = 4  # prior samples among which it draws, for each row of the batch


@dataclass
class SemiConfig:
    cross_entropy: float = 10.0  # weight of -log q(c | x) on labelled examples
    labelled: float = 1.0  # weight of their bound
    fantasies: float = 0.0  # weight of -log q(c | x) on fantasies, whose class is known too
    unlabelled: float = 0.1  # share of the unlabelled bound's gradient that q(c | x) takes, once half the epochs are over
    consistency: float = 10.0  # weight, by then, of the cross-entropy between q(c | x) with its noise and its own choice without
    batch_fraction: float = 0.5  # labelled examples for each row of the batch
    dropout: float = 0.5  # rate after each hidden layer of the classifier, while training
    input_dropout: float = 0.3  # rate among its inputs, while training
    noise: float = 0.3  # standard deviation added to its inputs, while training


@dataclass
class ClusteringConfig:
    num_clusters: int = 20  # C
    base_scale: float = 0.125  # by which the base prior around each centre shrinks
    eta: float = 1.5  # distance below which centres repel each other
    spread_weight: float = 1.0  # of that hinge
    centre_lr: float = 10.0  # factor on the rate of the centres
    balance: float | None = None  # weight of the divergence of a batch's clusters from equally many members; 20 with a latent one, else 0, if null
    latent: bool = False  # a latent cluster with a posterior of its own, instead of the nearest centre


@dataclass
class MapConfig:
    """Of t-SNE and UMAP, by their own names; the libraries' defaults."""

    perplexity: float = 30.0
    n_neighbors: int = 15
    min_dist: float = 0.1


@dataclass
class MethodConfig:
    name: str = "ddvi"
    posterior: str = "diffusion"  # gaussian, iaf, planar, realnvp, spline, hierarchical_iaf, hamiltonian, path_integral, adversarial or diffusion
    objective: str = "ddvi"  # elbo, iwae, ddvi, adversarial or wae
    num_samples: int = 1  # importance samples a row
    reweighted: bool | None = None  # elbo and ddvi: the decoder learns from importance-weighted samples; if null, with a chain of several samples
    doubly_reparametrised: bool = False  # iwae: the gradient of Tucker et al.
    beta: float = 1.0  # elbo and ddvi: factor on the KL weight
    weight: float | None = None  # adversarial, wae: of the discriminator's opinion or the discrepancy, nats; the objective's own if null
    flow: FlowConfig = field(default_factory=FlowConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    sleep: SleepConfig = field(default_factory=SleepConfig)
    task: str = "unsupervised"  # or semi, m2 (labels), clustering, or map: pca, tsne, umap
    semi: SemiConfig = field(default_factory=SemiConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    map: MapConfig = field(default_factory=MapConfig)


@dataclass
class KLConfig:
    kind: str = "linear"  # constant, linear, cyclic or reverse_warmup
    weight: float = 1.0  # at the end
    fraction: float = 0.4  # of the epochs by which the ramp has ended
    hold: float = 0.0  # of the epochs at full weight before it
    whole_epochs: bool = False  # the weight moves from epoch to epoch, not from step to step


@dataclass
class DefectsConfig:
    """Mistakes of the released code, each of which can be switched on alone to see what it is worth."""

    dropout_at_evaluation: bool = False  # dropout stays on
    log_var_twice: bool = False  # log q counts log_var where log_var / 2 belongs (methods without a chain)
    unscaled_noise: bool = False  # linear betas from 1e-4 to 0.02 for any T, so that noising stops half way
    standard_normal_top: bool = False  # y_T is held against N(0, I), which the noising does not reach


@dataclass
class RecipeConfig:
    name: str = "default"
    epochs: int = 400
    batch_size: int = 128
    lr: float = 1e-3  # peak learning rate of Adam
    lr_schedule: str = "cosine"  # cosine or constant
    warmup_fraction: float = 0.0  # of the epochs in which the rate rises
    max_norm: float | None = 50.0  # gradient clipping
    average_decay: float | None = None  # of a moving average of the weights that takes their place in the end; null for none
    denoiser_lr: float = 1.0  # factor on the rate of a chain's network
    schedule_lr: float = 10.0  # factor on the rate of learned schedules and variances
    kl: KLConfig = field(default_factory=KLConfig)
    prior_blur: float = 0.3  # width by which the prior is blurred at first
    prior_blur_fraction: float = 0.6  # of the epochs by which the blur is gone
    prior_blur_power: float = 1.0  # with more than 1 the blur narrows slowly at first
    prior_max_score: float | None = 200.0  # limit of each sample's gradient of log p(z); null for none
    prior_max_score_fraction: float = 1.0  # of the epochs in which that limit holds
    joint_score: bool = False  # elbo and ddvi: that limit holds for its sum with the gradient of log p(x|z), which then cannot outvote it
    match_prior: bool = True  # start the encoder's means with the prior's centre and spread
    restarts: int = 1  # starts, of which the one with the best bound on the training data goes on; one process
    restart_fraction: float = 0.3  # of the epochs after which it is chosen
    defects: DefectsConfig = field(default_factory=DefectsConfig)
    context_dropout: float | None = None  # rate of the context networks; the encoder's if null
    shared_context: bool = False  # a flow's context is a further output of its encoder, which else has a network of its own beside it
    sigmoid_variances: bool = False  # keep the encoder's variances below 1
    prior_weight: float = 1.0  # released, without a chain: of -log p(z) within the KL term
    sleep_updates: int = 3  # released ddvi: sleep updates after each batch
    prior_epochs: int = 0  # released: of fitting the unconditional chain
    prior_steps: int = 1000  # released: batches in such an epoch
    warmup_epochs: int = 0  # released: of the unconditional warm-up
    frozen_fraction: float = 0.0  # released: of the epochs in which the decoder stands still


@dataclass
class EvaluationConfig:
    evidence: bool = True  # by quadrature, for up to two latents
    evidence_blur: float | None = None  # width of a blur of the prior, as a kernel estimate has, for a second evidence and ELBO; null for none
    elbo_samples: int = 100  # draws a row for the ELBO
    iwae_samples: int = 1000  # K of the IWAE bound
    limit: int | None = 2000  # test examples for evidence and bounds; null for all
    prior_samples: int = 10000  # for latent NLL and MMD


@dataclass
class Config:
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0  # of initial weights, order and noise
    split_seed: int = 0  # of the train and test split, where the data set has none
    latent_dim: int = 2  # D
    epochs: int | None = None  # overrides the recipe's, in every stage it has
    max_minutes: float | None = None  # fewer epochs, as many as fit into so many minutes of training by a timing of the first steps
    data: str | None = None  # 1kg and genomes: a store or a genotype file of one's own
    labels: str | None = None  # and a table of its samples' labels
    data_dir: str | None = None  # where files of data sets lie; DDVI_FAST_DATA if null
    download: bool = False  # fetch missing files with torchvision
    limit: int | None = None  # first so many training examples
    device: str = "cpu"
    precision: str = "float32"  # of matrix products while training, or bf16; fp16 with engine parallel or deepspeed
    engine: str = "auto"  # local, parallel or deepspeed; local in one process, deepspeed in several if installed, else parallel
    zero_stage: int = 0  # deepspeed: what is spread over processes: 1 optimiser states, 2 gradients too, 3 parameters too
    accumulation: int = 1  # parts into which each process cuts its rows of a batch (not with engine local)
    optimiser: str = "auto"  # which fused Adam: apex, deepspeed, deepspeed_cpu or torch (not with engine local)
    timeout: float = 300.0  # seconds of silence after which another process counts as lost
    checkpoint_steps: int | None = 1000  # from one checkpoint to the next; null for none
    checkpoint_keep: int = 2  # how many of the last ones stay
    capture: bool | None = None  # record the training step once and replay it; if null, on a GPU, unless a posterior cannot be (realnvp)
    compile_networks: bool = False  # let torch.compile fuse the dense networks while training
    threads: int | None = None  # of torch on the CPU; its own choice if null
    run_dir: str | None = None  # runs/DATASET-METHOD-PRIOR-seedN if null
    overwrite: bool = False  # replace another run in run_dir
    progress: str = "auto"  # auto, on or off
    tensorboard: bool = True
    tracker: str | None = None  # wandb or mlflow, to follow the run there too; their environment variables say where
    figures: bool = True
