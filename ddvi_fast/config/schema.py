"""Configuration of a training run: the options of its experiment, and where and how it runs.

The files of `conf/` hold one choice each. Settings of the experiment are in `ddvi_fast.recipes.options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ddvi_fast.recipes.options import Options


@dataclass
class EvaluationOptions:
    """Sizes of the evaluation on the test set."""

    evidence: bool = True  # compute the evidence by quadrature, for up to two latents
    evidence_blur: float | None = None  # width of a Gaussian kernel on the prior, for a second evidence and ELBO; null for none
    gap: bool = False  # split the gap of the first 100 test examples: amortisation, family, steps of a chain
    elbo_samples: int = 100  # posterior samples per row for the ELBO
    iwae_samples: int = 1000  # K of the IWAE bound
    limit: int | None = 2000  # number of test examples for evidence and bounds; null for all
    prior_samples: int = 10000  # prior samples for latent NLL and MMD


@dataclass
class Config(Options):
    """Configuration of one run."""

    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    split_seed: int = 0  # seed of the train and test split, where the data set has none
    max_minutes: float | None = None  # limit of the training time: the number of epochs that fit, by a timing of the first steps
    max_passes: float | None = None  # limit of the rows that the decoder decodes in training, per training example: the number of epochs that fit
    data: str | None = None  # 1kg and genomes: path of a store or a genotype file
    labels: str | None = None  # 1kg and genomes: path of a table of its samples' labels
    data_dir: str | None = None  # folder of the data sets' files; the environment variable DDVI_FAST_DATA if null
    download: bool = False  # download missing files with torchvision
    limit: int | None = None  # number of training examples to use, the first ones; null for all
    device: str = "cpu"
    precision: str = "float32"  # precision of matrix products in training: "float32", "bf16", or "fp16" with engine parallel or deepspeed
    engine: str = "auto"  # "local", "parallel" or "deepspeed"; local in one process, deepspeed in several if it is installed, else parallel
    zero_stage: int = 0  # deepspeed: partition over processes: 1 optimizer states, 2 gradients too, 3 parameters too
    accumulation: int = 1  # parts into which each process splits its rows of a batch (not with engine=local)
    optimiser: str = "auto"  # fused Adam: "apex", "deepspeed", "deepspeed_cpu" or "torch" (not with engine=local)
    timeout: float = 300.0  # seconds without a sign of another process after which it counts as lost
    checkpoint_steps: int | None = 1000  # steps between checkpoints; null for none
    checkpoint_keep: int = 2  # number of checkpoints to keep, the last ones
    capture: bool | None = None  # record the training step as a CUDA graph; if null, on a GPU, unless the posterior cannot be recorded (realnvp)
    compile_networks: bool = False  # compile the dense networks with torch.compile in training
    threads: int | None = None  # CPU threads of torch; its own default if null
    run_dir: str | None = None  # folder of the run; runs/DATASET-METHOD-PRIOR-seedN if null
    overwrite: bool = False  # replace another run in run_dir
    progress: str = "auto"  # progress bar: "auto", "on" or "off"
    tensorboard: bool = True  # write TensorBoard events
    tracker: str | None = None  # "wandb" or "mlflow" to log there too, as their environment variables say
    figures: bool = True  # draw the plots of the run
