"""The table `ddvi-fast reproduce fixed-decoder`: amortized posteriors of one frozen decoder, compared with the evidence.

A variational autoencoder is trained once, and its decoder frozen. Every posterior starts from its encoder. The informed chain in the updated frame
is trained for a given time; every other amortized posterior until it has had as many seconds and as many passes of the decoder.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks, _files, data
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.evidence import log_evidence_annealed
from ddvi_fast.likelihoods import make as make_likelihood
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.paper import fixed_decoder_table, record_files
from ddvi_fast.paper.fixed_decoder_posteriors import IMAGES, NOT_TRAINED, PER_IMAGE, ROWS, SAMPLES, Bound, Budget, fit, make, optimize
from ddvi_fast.paper.fixed_decoder_table import FEW, figures_of, markdown
from ddvi_fast.paper.study_settings import digest, read
from ddvi_fast.posteriors import Gaussian, Posterior
from ddvi_fast.priors import make as make_prior
from ddvi_fast.rng import Draws

NAME = "fixed-decoder"
_BLOCK = 50  # images, or samples for each, at a time
_ACTIVE = 0.01  # variance of a mean over the data from which a latent is active (Burda et al. 2016)


@dataclass(frozen=True)
class Settings:
    """Settings of the table.

    Args:
        dataset: Data set, whose values in [0, 1] are binarized at random (default mnist).
        validation: Fraction of the training images that takes the place of the test images, to choose settings (default 0).
        images: Number of test images, the first ones (default 1,000).
        latents, hidden: Number of latents, and width of the hidden layer of encoder and decoder (default 20 and 400).
        epochs: Epochs of the autoencoder (default 20).
        seconds: CPU seconds of training of the informed chain in the updated frame (default 600).
        batch_size: Images in a training step of the autoencoder (default 128).
        lr: Peak learning rate of the posteriors, which falls to zero along a cosine (default 1e-3).
        optimized_steps: Steps of the optimization per image, with ten samples each (default 500).
        samples: Samples per image of bounds and effective sample sizes (default 500).
        evidence_samples: Samples per image of the evidence, from the Gaussian of the updated frame (default 100,000).
        chains, temperatures: Chains and exponents of annealed importance sampling (default 16 and 500).
    """

    dataset: str = "mnist"
    validation: float = 0.0
    images: int = 1000
    latents: int = 20
    hidden: int = 400
    epochs: int = 20
    seconds: float = 600.0
    batch_size: int = 128
    lr: float = 1e-3
    optimized_steps: int = 500
    samples: int = 500
    evidence_samples: int = 100_000
    chains: int = 16
    temperatures: int = 500

    def __post_init__(self) -> None:
        _checks.at_least(1, **{name: getattr(self, name) for name in ("images", "latents", "hidden", "epochs", "batch_size", "optimized_steps")})
        _checks.at_least(FEW, samples=self.samples, evidence_samples=self.evidence_samples)
        for name in ("seconds", "lr"):
            _checks.number(getattr(self, name), name, above=0)


_OF_DECODER = ("dataset", "validation", "latents", "hidden", "epochs", "batch_size")


def reproduce(
    overrides: Sequence[str] = (),
    *,
    seeds: int = 3,
    rows: Sequence[str] | None = None,
    runs: str | Path | None = None,
    output: str | Path | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Train and evaluate what is missing, then write the table of all that is there.

    Args:
        overrides: Fields of `Settings` and ``data_dir``, ``name=value`` (list of str).
        seeds: Number of runs of each posterior (int, default 3). All have the same decoder.
        rows: Names of rows (list of str, default all). Rows that compare themselves with the informed chain train it too.
        runs: Folder of the runs (path, default `runs/reproduce`).
        output: Folder of the table (path, default: beside the runs).
        command: Command line to record in the table (str).
        report: Function that is called with a line of text after each run.

    Returns:
        The written files, table.json and table.md.
    """
    _checks.integer(seeds, "--seeds", 1)
    stated = read(Settings, overrides, NAME)
    data_dir, settings = stated.pop("data_dir", None), Settings(**stated)
    wanted = list(ROWS) if rows is None else [_checks.choice(row, ROWS, "--rows") for row in rows]
    if set(wanted) - {"informed", *NOT_TRAINED, *PER_IMAGE}:  # their budget is that of the informed chain
        wanted = ["informed", *wanted]
    folder = Path("runs/reproduce" if runs is None else runs) / NAME / f"posteriors-{digest(settings)}"
    output = folder if output is None else Path(output)
    with _files.locked(folder, "reproduce"):
        study = Study.of(settings, folder, data_dir)
        for seed in range(seeds):
            for row in sorted(set(wanted), key=lambda row: (row != "informed", list(ROWS).index(row))):
                if study.run(row, seed):
                    report(f"{NAME} {row} seed {seed}: {_line(study.found(row, seed))}")
                    _write(study, output, command)
        study.weigh()
        return _write(study, output, command)


@dataclass(frozen=True)
class Study:
    """The frozen model with its encoder, the images, and the folder of the runs."""

    settings: Settings
    folder: Path
    model: LatentVariableModel
    encoder: MLP
    train: Tensor
    test: Tensor

    @classmethod
    def of(cls, settings: Settings, folder: Path, data_dir: str | None) -> Study:
        """Load the data, and train the autoencoder unless it is there."""
        loaded = data.load(settings.dataset, data_dir, validation=settings.validation)
        low, high = loaded.value_range
        train, test = ((loaded.inputs(split=split).flatten(1) - low) / (high - low) for split in ("train", "test"))
        pixels = train.shape[1]
        decoder = MLP(settings.latents, [settings.hidden], pixels, draws=Draws(0).importance(1))
        model = LatentVariableModel(make_prior("gaussian", dim=settings.latents), decoder, make_likelihood("bernoulli"))
        encoder = MLP(pixels, [settings.hidden], 2 * settings.latents, draws=Draws(0).importance(2))
        path, modules = folder.parent / f"decoder-{digest(settings, _OF_DECODER)}", {"encoder": encoder, "decoder": decoder}
        if path.is_dir():
            checkpoint.load_modules(checkpoint.load(path)[0], modules)
        else:
            steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
            objective = Bound(model, Gaussian(encoder, settings.latents), model)
            fit(objective, train, settings.batch_size, settings.lr, 0, lambda spent: spent.passes / (steps * settings.batch_size))
            checkpoint.save(path, checkpoint.module_tensors(modules), {})
        model.requires_grad_(False).eval()
        return cls(settings, folder, model, encoder, train, data.binarize(test[: settings.images], Draws(1)))

    def found(self, row: str, seed: int) -> dict[str, Any] | None:
        """The figures of a run, None if it is not there."""
        path = self._path(row, seed)
        return _files.read_json(path) if path.is_file() else None

    def _path(self, row: str, seed: int) -> Path:
        return self.folder / f"{row}-{0 if row in NOT_TRAINED else seed}.json"

    def run(self, row: str, seed: int) -> bool:
        """Train and evaluate a row unless it is there; returns whether it was not."""
        if self.found(row, seed) is not None:
            return False
        if row == "annealed":
            figures = self._annealed()
        else:
            posterior = self.posterior(row, seed)
            spent = self._train(row, posterior, seed)
            figures = {"passes": spent.passes, "seconds": spent.seconds, **self._figures(posterior)}
        _files.write_json(self._path(row, seed), figures)
        return True

    def posterior(self, row: str, seed: int) -> Posterior:
        """The posterior of a row before its training."""
        return make(row, self.model, self.encoder, self.test, seed)

    def _train(self, row: str, posterior: Posterior, seed: int) -> Budget:
        """Train the posterior of a row; returns what that has cost."""
        settings = self.settings
        if row in NOT_TRAINED:
            return Budget(0.0, 0)
        if row in PER_IMAGE:
            return optimize(self.model, posterior, self.test, settings.optimized_steps, seed)
        objective = Bound(self.model, posterior, None, SAMPLES)
        if row == "informed":
            return fit(objective, self.train, IMAGES, settings.lr, seed, lambda spent: spent.seconds / settings.seconds)
        informed = self.found("informed", seed)
        return fit(objective, self.train, IMAGES, settings.lr, seed, Budget(informed["seconds"], informed["passes"]).share_in)

    @torch.no_grad()
    def _figures(self, posterior: Posterior) -> dict[str, Any]:
        """Bounds and effective sample sizes of the test images, and the CPU seconds of their computation."""
        start, posterior = time.process_time(), posterior.eval()
        weights = torch.cat(list(self._log_weights(posterior, self.settings.samples, 2)))
        return {**figures_of(weights), "evaluation_seconds": time.process_time() - start}

    def _log_weights(self, posterior: Posterior, samples: int, seed: int) -> Iterator[Tensor]:
        """Log-weights [n, M] of the test images in float64, in blocks of samples."""
        encoded = posterior.encode(self.test)
        for first in range(0, samples, _BLOCK):
            sample = posterior.sample_encoded(encoded, min(_BLOCK, samples - first), Draws(seed).importance(first))
            yield (self.model.log_likelihood(self.test, sample.z) + posterior.log_prior_ratio(self.model.prior, sample)).double()

    def _annealed(self) -> dict[str, Any]:
        """Evidence of the test images by annealed importance sampling."""
        start, settings, blocks = time.process_time(), self.settings, range(0, len(self.test), _BLOCK)
        options = {"num_samples": settings.chains, "num_temperatures": settings.temperatures}
        found = [log_evidence_annealed(self.model, self.test[row : row + _BLOCK], draws=Draws(3, row), **options) for row in blocks]
        values = torch.cat([one.log_evidence for one in found]).tolist()
        return {"log_evidence": values, "evaluation_seconds": time.process_time() - start}

    @torch.no_grad()
    def weigh(self) -> None:
        """Importance-weighted evidence of the test images by the Gaussian of the updated frame."""
        path = self.folder / "evidence.json"
        if path.is_file():
            return
        posterior = self.posterior("updated", 0).eval()
        total = self.test.new_full((len(self.test),), -math.inf, dtype=torch.float64)
        for weights in self._log_weights(posterior, self.settings.evidence_samples, 4):
            total = torch.logaddexp(total, weights.logsumexp(0))
        _files.write_json(path, {"log_evidence": (total - math.log(self.settings.evidence_samples)).tolist()})

    def evidence(self) -> dict[str, float]:
        """Mean log-evidence of the test images by every estimate that is there."""
        found = {}
        if (annealed := self.found("annealed", 0)) is not None:
            found["annealed importance sampling"] = statistics.fmean(annealed["log_evidence"])
        path = self.folder / "evidence.json"
        if path.is_file():
            name = f"{self.settings.evidence_samples:,} samples, {ROWS['updated']}"
            found[name] = statistics.fmean(_files.read_json(path)["log_evidence"])
        bounds = {row: max(one["iwae"] for one in seeds) for row, seeds in self.all_figures().items() if row != "annealed"}
        if bounds:
            best = max(bounds, key=lambda row: bounds[row])
            found[f"{self.settings.samples:,} samples, {ROWS[best]}"] = bounds[best]
        return found

    def all_figures(self) -> dict[str, list[dict[str, Any]]]:
        """The figures of all runs that are there, by row."""
        found = {row: sorted(self.folder.glob(f"{row}-[0-9]*.json")) for row in ROWS}
        return {row: [_files.read_json(path) for path in paths] for row, paths in found.items() if paths}

    def active_units(self) -> int:
        """Number of latents whose posterior mean varies over the test images."""
        with torch.no_grad():
            return int((self.encoder(self.test)[:, : self.settings.latents].var(0) > _ACTIVE).sum())


def _line(figures: dict[str, Any]) -> str:
    shown = (f"{name} {value:.4g}" for name, value in figures.items() if not isinstance(value, list))
    return ", ".join(shown)


def _write(study: Study, output: Path, command: str) -> list[Path]:
    """Write the table of all runs that are there."""
    made = environment()
    record = {
        "kind": fixed_decoder_table.__name__,
        "command": command,
        **{name: value for name, value in made.items() if name != "command"},
        "settings": dataclasses.asdict(study.settings),
        "active_units": study.active_units(),
        "evidence": study.evidence(),
        "runs": {row: [_without_lists(one) for one in seeds] for row, seeds in study.all_figures().items()},
    }
    return record_files.write(output / "table.json", record, md=markdown(record))


def _without_lists(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: statistics.fmean(value) if isinstance(value, list) else value for name, value in figures.items()}
