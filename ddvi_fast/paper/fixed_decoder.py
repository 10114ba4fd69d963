"""The table `ddvi-fast reproduce fixed-decoder`: amortized posteriors of one frozen decoder, compared with the evidence.

A variational autoencoder is trained once, and its decoder frozen. Every posterior starts from its encoder. The informed chain is trained for a
given time; every other amortized posterior until it has had as many seconds and as many passes of the decoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, _files, _json, _markdown, data, ops, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.evidence import log_evidence_annealed
from ddvi_fast.likelihoods import make as make_likelihood
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP, take_rows
from ddvi_fast.objectives import Covering, Objective, Progress, Terms
from ddvi_fast.posteriors import IAF, Diffusion, FullGaussian, Gaussian, Posterior, Spline
from ddvi_fast.priors import make as make_prior
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

NAME, KIND = "fixed-decoder", "ddvi_fast.paper.fixed_decoder"
ROWS = {
    "encoder": "encoder of the VAE",
    "tuned": "encoder, trained on",
    "full": "Gaussian, full covariance",
    "iaf": "IAF",
    "spline": "spline flow",
    "blind": "diffusion, blind",
    "informed": "diffusion, informed",
    "optimized": "diagonal Gaussian, optimized per image",
    "optimized-full": "full Gaussian, optimized per image",
    "annealed": "annealed importance sampling",
}
PER_IMAGE = ("optimized", "optimized-full")
NOT_TRAINED = ("encoder", "annealed")
STEPS, BETA = 8, 0.25  # length of the chains, and their initial betas
_CONTEXT, _WIDTH = 32, 128  # size of the context of chains and flows, width of the denoiser
_BLOCK = 50  # images, or samples for each, at a time
_COVERED, _COVERED_ROWS = 1000, 32  # images of the covering term, and how many of them take part in a step
_FEW = 10  # samples of the smaller importance-weighted bound
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
        seconds: CPU seconds of training of the informed chain (default 600).
        batch_size: Images per training step (default 128).
        covering: Weight of the covering term of the informed chain, on latents of data from Langevin chains (default 0.1; 0 for none).
        lr: Peak learning rate of the posteriors, which falls to zero along a cosine (default 1e-3).
        optimized_steps: Steps of the optimization per image, with ten samples each (default 500).
        samples: Samples per image of bounds and effective sample sizes (default 500).
        evidence_samples: Samples per image of the evidence, from the best of all proposals (default 100,000).
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
    covering: float = 0.1
    lr: float = 1e-3
    optimized_steps: int = 500
    samples: int = 500
    evidence_samples: int = 100_000
    chains: int = 16
    temperatures: int = 500

    def __post_init__(self) -> None:
        _checks.at_least(1, **{name: getattr(self, name) for name in ("images", "latents", "hidden", "epochs", "batch_size", "optimized_steps")})
        _checks.at_least(_FEW, samples=self.samples, evidence_samples=self.evidence_samples)
        for name in ("seconds", "lr"):
            _checks.number(getattr(self, name), name, above=0)

    @classmethod
    def of(cls, overrides: Sequence[str]) -> Settings:
        """The settings of overrides ``name=value``."""
        types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        stated = {}
        for name, _, text in (override.partition("=") for override in overrides):
            kind = types[_checks.choice(name, types, NAME)]
            try:
                stated[name] = kind(text)
            except ValueError:
                _checks.fail(name, f"a value of type {kind.__name__}", text)
        return cls(**stated)


_OF_DECODER = ("dataset", "validation", "latents", "hidden", "epochs", "batch_size")


def _digest(settings: Settings, names: Sequence[str] | None = None) -> str:
    """A digest of the settings `names` (default all), so that other settings have other folders."""
    stated = {name: value for name, value in dataclasses.asdict(settings).items() if names is None or name in names}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:8]


class Budget(NamedTuple):
    """CPU seconds and passes of the decoder of a training."""

    seconds: float
    passes: int


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
    data_dir = next((override.partition("=")[2] for override in overrides if override.startswith("data_dir=")), None)
    settings = Settings.of([override for override in overrides if not override.startswith("data_dir=")])
    wanted = list(ROWS) if rows is None else [_checks.choice(row, ROWS, "--rows") for row in rows]
    if set(wanted) - {"encoder", "annealed", "informed", *PER_IMAGE}:  # their budget is that of the informed chain
        wanted = ["informed", *wanted]
    folder = Path("runs/reproduce" if runs is None else runs) / NAME / f"posteriors-{_digest(settings)}"
    output = folder if output is None else Path(output)
    with _files.locked(folder, "reproduce"):
        study = Study.of(settings, folder, data_dir)
        for seed in range(seeds):
            for row in sorted(set(wanted), key=lambda row: (row != "informed", list(ROWS).index(row))):
                if study.run(row, seed):
                    report(f"{NAME} {row} seed {seed}: {_line(study.found(row, seed))}")
                    _write(study, output, command)
        for seed in range(seeds):
            study.weigh(seed)
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
        path, modules = folder.parent / f"decoder-{_digest(settings, _OF_DECODER)}", {"encoder": encoder, "decoder": decoder}
        if path.is_dir():
            checkpoint.load_modules(checkpoint.load(path)[0], modules)
        else:
            steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
            objective = Bound(model, Gaussian(encoder, settings.latents), model)
            fit(objective, train, settings, 0, lambda spent: spent.passes / (steps * settings.batch_size))
            checkpoint.save(path, checkpoint.module_tensors(modules), {})
        model.requires_grad_(False).eval()
        return cls(settings, folder, model, encoder, train, binarized(test[: settings.images], Draws(1)))

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
        """The posterior of a row before its training: the Gaussian of the autoencoder's encoder, or near it."""
        dim, hidden, pixels = self.settings.latents, self.encoder.layers[0], self.test.shape[1]
        if row in PER_IMAGE:
            with torch.no_grad():
                table = Table(self.encoder(self.test), dim * (dim - 1) // 2 if row == "optimized-full" else 0)
            return Gaussian(table, dim, coordinates="encoder") if row == "optimized" else FullGaussian(table, None, dim)
        encoder = MLP(pixels, [self.settings.hidden], 2 * dim)
        encoder.load_state_dict(self.encoder.state_dict())
        if row in ("encoder", "tuned"):
            return Gaussian(encoder, dim, coordinates="encoder")
        size = dim * (dim - 1) // 2 if row == "full" else _CONTEXT
        context = MLP(pixels, [self.settings.hidden], size, zero_output=row == "full", draws=Draws(seed).importance(3))
        context.layers[0].load_state_dict(hidden.state_dict())
        if row == "full":
            return FullGaussian(encoder, context, dim)
        if row in ("iaf", "spline"):
            options = {"context_dim": size, "draws": Draws(seed).importance(4), "coordinates": "encoder"}
            return IAF(encoder, context, dim, **options) if row == "iaf" else Spline(encoder, context, dim, **options)
        informed = STEPS if row == "informed" else 0
        wide = size + (dim if informed else 0)
        denoiser = ResidualMLP(dim, wide, STEPS, _WIDTH, zero_output=True, draws=Draws(seed).importance(4))
        schedule = schedules.make("constant", STEPS, beta=BETA)
        target = self.model if informed else None
        return Diffusion(encoder, denoiser, schedule, context_encoder=context, coordinates="encoder", informed_steps=informed, target=target)

    def _train(self, row: str, posterior: Posterior, seed: int) -> Budget:
        """Train the posterior of a row; returns what that has cost."""
        settings = self.settings
        if row in NOT_TRAINED:
            return Budget(0.0, 0)
        if row in PER_IMAGE:
            return optimize(self.model, posterior, self.test, settings.optimized_steps, seed)
        objective = Bound(self.model, posterior)
        if row == "informed":
            if settings.covering:
                covered = binarized(self.train[:_COVERED], Draws(seed).lane("looked_at"))
                objective.cover(Covering(self.model, posterior, covered, _COVERED_ROWS, weight=settings.covering))
            return fit(objective, self.train, settings, seed, lambda spent: spent.seconds / settings.seconds)
        informed = self.found("informed", seed)
        limits = Budget(informed["seconds"], informed["passes"])
        return fit(objective, self.train, settings, seed, lambda spent: min(now / most for now, most in zip(spent, limits, strict=True)))

    @torch.no_grad()
    def _figures(self, posterior: Posterior) -> dict[str, Any]:
        """Bounds and effective sample sizes of the test images, and the CPU seconds of their computation."""
        start, posterior = time.process_time(), posterior.eval()
        weights = self.log_weights(posterior, self.settings.samples)
        return {**of_weights(weights), "evaluation_seconds": time.process_time() - start}

    def log_weights(self, posterior: Posterior, samples: int) -> Tensor:
        """Log-weights [samples, M] of the test images in float64, in blocks of samples."""
        blocks = [(first, min(_BLOCK, samples - first)) for first in range(0, samples, _BLOCK)]
        found = [posterior.log_weights(self.model, self.test, count, Draws(2).importance(first)).double() for first, count in blocks]
        return torch.cat(found)

    def _annealed(self) -> dict[str, Any]:
        """Evidence of the test images by annealed importance sampling."""
        start, settings, blocks = time.process_time(), self.settings, range(0, len(self.test), _BLOCK)
        options = {"num_samples": settings.chains, "num_temperatures": settings.temperatures}
        found = [log_evidence_annealed(self.model, self.test[row : row + _BLOCK], draws=Draws(3, row), **options) for row in blocks]
        values = torch.cat([one.log_evidence for one in found]).tolist()
        return {"log_evidence": values, "evaluation_seconds": time.process_time() - start}

    def weigh(self, seed: int) -> None:
        """Importance-weighted evidence of the test images by the proposal with the best bound of all that need no pass of the decoder but one."""
        path = self.folder / f"evidence-{seed}.json"
        known = {row: self.found(row, seed) for row in PER_IMAGE}
        if path.is_file() or any(one is None for one in known.values()):
            return
        best = max(known, key=lambda row: known[row]["iwae"])
        posterior = self.posterior(best, seed)
        optimize(self.model, posterior, self.test, self.settings.optimized_steps, seed)
        total = self.test.new_full((len(self.test),), -math.inf, dtype=torch.float64)
        with torch.no_grad():
            for first in range(0, self.settings.evidence_samples, _BLOCK):
                count = min(_BLOCK, self.settings.evidence_samples - first)
                weights = posterior.log_weights(self.model, self.test, count, Draws(4).importance(first)).double()
                total = torch.logaddexp(total, weights.logsumexp(0))
        values = (total - math.log(self.settings.evidence_samples)).tolist()
        _files.write_json(path, {"proposal": best, "log_evidence": values})

    def evidence(self) -> dict[str, float]:
        """Mean log-evidence of the test images by every estimate that is there."""
        found = {}
        if (annealed := self.found("annealed", 0)) is not None:
            found["annealed importance sampling"] = statistics.fmean(annealed["log_evidence"])
        for path in sorted(self.folder.glob("evidence-*.json")):
            one = _files.read_json(path)
            name = f"{self.settings.evidence_samples:,} samples, {ROWS[one['proposal']]}"
            found[name] = max(statistics.fmean(one["log_evidence"]), found.get(name, -math.inf))
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


class Table(nn.Module):
    """Encoder of fixed rows: free outputs for each of them, which start from those of an encoder [M, 2 D] and zeros."""

    def __init__(self, start: Tensor, zeros: int) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.cat((start, start.new_zeros(len(start), zeros)), 1))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.output


class Bound(Objective):
    """Minus the evidence bound, with one sample. Term: `bound`, nats.

    Args:
        model: The model.
        posterior: The posterior, which is trained.
        trained: The model if it is trained too, otherwise None.
        num_samples: Samples per row (int, default 1).
    """

    def __init__(self, model: LatentVariableModel, posterior: Posterior, trained: nn.Module | None = None, num_samples: int = 1) -> None:
        super().__init__()
        self.posterior, self.trained, self.num_samples = posterior, trained, num_samples
        self._model = (model,)  # no submodule, so that it is not trained
        informed = posterior.informed_steps if isinstance(posterior, Diffusion) else 0
        self.passes = num_samples * (1 + informed)  # of the decoder, per row
        self.more_passes = 0  # of the decoder, per step
        self._covering: Covering | None = None

    def cover(self, covering: Covering) -> None:
        """Add a covering term, which is trained beside the bound."""
        self._covering = covering
        self.more_passes = covering.num_rows * (covering.num_steps + 2)  # the first density of the chains, and the direction of the regression

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        values = {"bound": -self.posterior.log_weights(self._model[0], x, self.num_samples, draws).mean(0)}
        if self._covering is None:
            return Terms(values, {"bound": 1.0})
        more = self._covering.terms(x, progress, draws.lane("candidates"))
        return Terms({**values, **more.values}, {"bound": 1.0, **more.weights})


def fit(objective: Bound, images: Tensor, settings: Settings, seed: int, fraction: Callable[[Budget], float]) -> Budget:
    """Train on random images, binarized anew in each step, until `fraction` of what was spent is 1; returns what was spent."""
    engine = Engine(objective, Optimisation(lr=settings.lr, max_norm=100.0), capture=False, exchange=False)
    spent, start, rows = Budget(0.0, 0), time.process_time(), settings.batch_size
    step = 0
    while (done := fraction(spent)) < 1:
        draws = Draws(seed, step * rows)
        x = binarized(take_rows(images, rng.integers(draws, rows, len(images), rng.ORDER)), draws.lane("looked_at"))
        engine.run(x, Progress(done, 1), draws)
        step += 1
        spent = Budget(time.process_time() - start, step * (rows * objective.passes + objective.more_passes))
    return spent


def optimize(model: LatentVariableModel, posterior: Posterior, x: Tensor, steps: int, seed: int) -> Budget:
    """Optimize a posterior with free parameters for each row of `x`, with `_FEW` samples in each step."""
    start, objective = time.process_time(), Bound(model, posterior, None, _FEW)
    engine = Engine(objective, Optimisation(lr=0.1, max_norm=None), capture=False, exchange=False)
    for step in range(steps):
        engine.run(x, Progress(step, steps), Draws(seed, step * len(x)))
    return Budget(time.process_time() - start, steps * len(x) * objective.passes)


def binarized(images: Tensor, draws: Draws) -> Tensor:
    """Images [N, P] of zeros and ones, drawn with the values as probabilities."""
    return (rng.uniform(draws, tuple(images.shape), rng.OBSERVATION) < images).float()


def of_weights(log_weights: Tensor) -> dict[str, float]:
    """Bounds, nats, and the median share of effective samples, of log-weights [K, M]."""
    count = len(log_weights)
    few = log_weights[: count // _FEW * _FEW].unflatten(0, (-1, _FEW))
    size = torch.exp(-torch.logsumexp(2 * log_weights.log_softmax(0), 0)) / count
    return {
        "elbo": float(log_weights.mean()),
        "iwae_few": float(ops.log_mean_exp(few, 1).mean()),
        "iwae": float(ops.log_mean_exp(log_weights, 0).mean()),
        "effective": float(size.median()),
    }


def _line(figures: dict[str, Any]) -> str:
    shown = (f"{name} {value:.4g}" for name, value in figures.items() if not isinstance(value, list))
    return ", ".join(shown)


def _write(study: Study, output: Path, command: str) -> list[Path]:
    """Write the table of all runs that are there."""
    made = environment()
    record = {
        "kind": KIND,
        "command": command,
        **{name: value for name, value in made.items() if name != "command"},
        "settings": dataclasses.asdict(study.settings),
        "active_units": study.active_units(),
        "evidence": study.evidence(),
        "runs": {row: [_without_lists(one) for one in seeds] for row, seeds in study.all_figures().items()},
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "table.json"
    for suffix, text in ((".json", _json.lines(record) + "\n"), (".md", markdown(record))):
        _files.write_text(path.with_suffix(suffix), text)
    return [path, path.with_suffix(".md")]


def _without_lists(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: statistics.fmean(value) if isinstance(value, list) else value for name, value in figures.items()}


def markdown(record: dict[str, Any]) -> str:
    """The table of a record."""
    settings, evidence = record["settings"], record["evidence"]
    best = max(evidence.values())
    few, samples = f"IWAE-{_FEW}", f"IWAE-{settings['samples']}"
    headings = ["posterior", "ELBO", "gap", few, samples, "ESS", "decoder passes", "CPU seconds", "seeds"]
    rows = [_row(ROWS[row], seeds, best) for row, seeds in record["runs"].items() if row != "annealed"]
    count, processor = settings["images"], record["machine"]["processor"]
    source = f"Commit {str(record['commit'])[:10]}, {processor}, torch {record['versions']['torch']}."
    split = "validation" if settings["validation"] else "test"
    lines = [
        f"# Posteriors of a fixed decoder with {settings['latents']} latents",
        "",
        f"`{record['command']}`. {source}",
        f"A variational autoencoder on binarized {settings['dataset']} ({settings['hidden']} hidden units, {settings['epochs']} epochs,"
        f" {record['active_units']} active latents), its decoder frozen. Means over {count} {split} images, nats per image,"
        " ± the standard deviation over seeds where there are several.",
        "All amortized posteriors start from the encoder of the autoencoder. The informed chain is trained for a given time, with a covering term of"
        f" weight {settings['covering']:g} on latents of data from Langevin chains, every other one until it has had as many seconds and as many"
        " passes of the decoder. Gap: the largest estimate of the evidence below, less the ELBO."
        f" ESS: median share of effective samples among {settings['samples']}.",
        "",
        _markdown.table(headings, rows),
        "",
        "Evidence, nats per image; each estimate is a lower bound in expectation:",
        "",
        _markdown.table(["estimate", "log p(x)"], [[name, f"{value:.2f}"] for name, value in evidence.items()]),
        "",
    ]
    return "\n".join(lines)


def _row(label: str, seeds: list[dict[str, Any]], evidence: float) -> list[str]:
    def mean(name: str, spec: str) -> str:
        values = [one[name] for one in seeds]
        return f"{statistics.fmean(values):{spec}}" + (f" ± {statistics.stdev(values):{spec}}" if len(values) > 1 else "")

    gap = f"{evidence - statistics.fmean(one['elbo'] for one in seeds):.2f}"
    bounds = [mean("elbo", ".2f"), gap, mean("iwae_few", ".2f"), mean("iwae", ".2f"), mean("effective", ".1%")]
    cost = [f"{statistics.fmean(one['passes'] for one in seeds):,.0f}", f"{statistics.fmean(one['seconds'] for one in seeds):.0f}"]
    return [label, *bounds, *cost, str(len(seeds))]
