"""Tables of the people of a run, of those who were trained on and of new ones: coordinates, spread of the posterior, cluster, probability."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files, metrics
from ddvi_fast.config.compose import from_dict
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset, folder_of
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.run_folder import RunFolder
from ddvi_fast.estimator import features as features_of
from ddvi_fast.estimator.inference import responsibilities
from ddvi_fast.genomes.convert import store_or_import
from ddvi_fast.genomes.dataset import ComponentsDataset, Genotypes, sample_tables, store_of
from ddvi_fast.genomes.features import ComponentFeatures, CountFeatures, features_of_dataset
from ddvi_fast.genomes.formats.sources import MULTIALLELIC
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.tables import HUMAN, SampleTable
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws
from ddvi_fast.training.run import FINAL

PEOPLE, EIGENVECTORS, EIGENVALUES = "people.tsv", "components.eigenvec", "components.eigenval"
FEATURES = "features"  # among the checkpoints of a run
_SAMPLES = 60  # posterior samples per person
_ROWS = 1024  # people at a time


@dataclass(frozen=True)
class Placed:
    """Where the posterior puts some people.

    Args:
        samples: Posterior samples, float32 [K, N, D].
        mean, spread: Mean and standard deviation of posterior samples, float32 [N, D].
        cluster: Most probable cluster, int64 [N]; None for a prior without classes.
        probability: Its probability, float64 [N], or None.
    """

    samples: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    cluster: np.ndarray | None
    probability: np.ndarray | None

    def columns(self) -> dict[str, list[str]]:
        """Text columns by heading: ``z1``, .., ``spread1``, .., ``cluster``, ``probability``."""
        places = {f"{name}{k + 1}": [f"{value:.5g}" for value in values[:, k]]
                  for name, values in (("z", self.mean), ("spread", self.spread)) for k in range(values.shape[1])}  # fmt: skip
        if self.cluster is None or self.probability is None:
            return places
        return {**places, "cluster": [str(each) for each in self.cluster], "probability": [f"{each:.4f}" for each in self.probability]}


@torch.no_grad()
def place(experiment: Experiment, x: Tensor, seed: int) -> Placed:
    """Posterior of the rows `x` [N, ...] of a trained experiment."""
    posterior, prior = experiment.posterior, experiment.model.prior
    draws = Draws(seed)
    z = torch.stack([metrics.encode(posterior, x, draws.importance(number)) for number in range(_SAMPLES)])
    where = (z.cpu().numpy(), z.mean(0).cpu().numpy(), z.std(0).cpu().numpy())
    if isinstance(posterior, ClassConditional):
        found = torch.cat([posterior.log_class_probs(part).exp() for part in x.split(_ROWS)])
    elif prior.num_classes:
        found = torch.stack([responsibilities(prior, sample) for sample in z]).mean(0)
    else:
        return Placed(*where, None, None)
    best = found.double().max(-1)
    return Placed(*where, best.indices.cpu().numpy(), best.values.cpu().numpy())


def sets_of(options: Genotypes) -> tuple[str, ...]:
    """Names of the sets of people; one where both sets of the data set are the same people."""
    held = "validation" if options.validation else "test"
    return ("training", held) if options.held_out > 0 or options.validation > 0 else ("training",)


def keep(config: Config, experiment: Experiment, dataset: Dataset, folder: RunFolder) -> None:
    """Write the table of all people of a run, its principal components, and the features with which new people are projected."""
    options = Genotypes(config.data, config.labels, **vars(config.dataset.genotypes), validation=config.dataset.validation)
    where = {"data_dir": folder_of(config.data_dir), "seed": config.split_seed}
    tables = sample_tables(config.dataset.name, options, **where)
    parts = []
    for split, word, table in zip(("train", "test"), sets_of(options), tables, strict=False):
        shown = table.take(np.arange(dataset.size(split)))  # fewer with `limit`
        placed = place(experiment, dataset.inputs(split=split), config.seed)
        parts.append({"name": shown.name, "set": [word] * len(shown), **placed.columns(), **_labels(shown)})
    whole = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    write_table(folder.path / PEOPLE, whole)
    features = features_of_dataset(dataset)
    state = {
        "features": features_of.class_name(features), "num_classes": dataset.num_classes,
        "num_autosomes": store_of(config.dataset.name, options, **where).num_autosomes,
    }  # fmt: skip
    checkpoint.save(folder.checkpoints / FEATURES, features.tensors(), state, features.save, earlier=features_of.EARLIER)
    if isinstance(dataset, ComponentsDataset) and dataset.pca is not None:
        write_eigenvectors(folder.path, dataset.pca)


def write_eigenvectors(folder: Path, pca: GenotypePCA) -> None:
    """Write eigenvectors of the fitted samples and eigenvalues of their relationship matrix, as PLINK 2 does."""
    vectors = pca.scores_ / np.maximum(pca.singular_values_, np.finfo(np.float64).tiny)
    columns = {f"PC{k + 1}": [f"{value:.6g}" for value in vectors[:, k]] for k in range(vectors.shape[1])}
    write_table(folder / EIGENVECTORS, {"#IID": pca.samples_, **columns})
    values = pca.singular_values_**2 / int((pca.scale_ > 0).sum())
    _write(folder / EIGENVALUES, "".join(f"{value:.6g}\n" for value in values))


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of one length as a table with tabs; a heading that occurs twice in a mapping is none."""
    rows = zip(*columns.values(), strict=True)
    _write(path, "\t".join(columns) + "\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows))


def project(
    run: str | Path,
    file: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    multiallelic: str = "split",
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Write a table of new people, projected by a finished run.

    Variants are matched with those of the run, of which a warning of class `MatchReport` tells. Components of people who were not trained on
    are unshrunk.

    Args:
        run: Folder of the run.
        file: Store, or genotype file of any format.
        out: Table to write.
        labels: Table of the people's labels, whose columns are written, too (default none).
        multiallelic: Treatment of sites of a VCF with several alternate alleles, ``"split"`` (default) or ``"drop"``.
        device: Device of the networks (default the CPU).
        overwrite: Whether to replace `out` (bool, default False).

    Raises:
        InputError: The run does not have the features of genotypes, less than half of their weight is in the file, or `out` exists.
    """
    out = _checks.path(out, "out").expanduser()
    _checks.require(overwrite or not out.exists(), "out", "a new file", str(out), "overwrite (--overwrite) replaces it")
    _checks.choice(multiallelic, MULTIALLELIC, "multiallelic")
    config, experiment, features, num_autosomes = _loaded(RunFolder.open(run), device)
    with tempfile.TemporaryDirectory() as folder:
        store = store_or_import(file, Path(folder) / "store", multiallelic=multiallelic, num_autosomes=num_autosomes)
        samples = store.samples if labels is None else attach(store.samples, read_labels(labels), leave_out=True)[0]
        rows = [np.arange(start, min(start + _ROWS, len(store))) for start in range(0, len(store), _ROWS)]
        x = torch.cat([features.of_rows(store, part) for part in rows]).to(device)
        called = np.concatenate([features.called(store, part) for part in rows])
    placed = place(experiment, x, config.seed)
    write_table(out, {"name": samples.name, "called": [f"{share:.4f}" for share in called], **placed.columns(), **_labels(samples)})
    return out


def _loaded(folder: RunFolder, device: str) -> tuple[Config, Experiment, ComponentFeatures | CountFeatures, int]:
    """Configuration, networks and features of a finished run, without its data, and the number of autosomes of its species."""
    path = folder.checkpoints / FEATURES
    hint = f"ddvi-fast evaluate {folder.path} --overwrite writes them, for runs of an earlier version"
    _checks.require(path.is_dir(), f"run {folder.path}", "a run on genotypes with its features", "none", hint)
    tensors, state = checkpoint.load(path)
    known = (ComponentFeatures, CountFeatures)
    features = _checks.instance(features_of.load(path, tensors, str(state["features"])), known, str(path), "features of genotypes")
    config = dataclasses.replace(from_dict(folder.config), device=str(_checks.device(device)))
    stand_in, classes = features.stand_in(), _checks.integer(state["num_classes"], f"{path}, num_classes", 0)
    if classes:
        labels = torch.arange(stand_in.size(), device="cpu") % classes
        stand_in = dataclasses.replace(stand_in, train_labels=labels, test_labels=labels, num_classes=classes)
    experiment = build(config, stand_in.to(device))
    weights, _ = checkpoint.load(folder.checkpoints / FINAL, device)
    checkpoint.load_modules(weights, experiment.modules())
    experiment.eval()
    # Runs of earlier versions do not name it.
    return config, experiment, features, _checks.integer(state.get("num_autosomes", HUMAN), f"{path}, num_autosomes", 1, 90)


def _labels(samples: SampleTable) -> dict[str, Any]:
    """Labels by their headings, of which none is that of a column of ours."""
    return {f"label_{name}": column for name, column in samples.labels.items()}


def _write(path: Path, text: str) -> None:
    with _files.replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
