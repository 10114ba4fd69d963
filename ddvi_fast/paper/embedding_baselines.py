"""Baselines that embed the data in two dimensions: PCA, t-SNE and UMAP, on the same features and with the same clustering."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files, metrics, plots
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.engine.run_folder import EVALUATION, RunFolder
from ddvi_fast.training.evaluate import released_clusters
from ddvi_fast.training.run import TASKS, Result, load_dataset, run_dir

MAPS = ("pca", "tsne", "umap")
LATENTS = "latents.npz"
_HINT = "pip install 'ddvi-fast[maps]'"


class Map(NamedTuple):
    """Coordinates of the training and the test examples, [N, D] and [M, D]."""

    train: Tensor
    test: Tensor


def run_map(config: Config) -> Result:
    """Compute and evaluate an embedding in a run folder; the coordinates are saved in `LATENTS`.

    Raises:
        InputError: As for `fit`, or a run folder that holds another run.
    """
    dataset = load_dataset(config)
    folder = RunFolder.create(run_dir(config), dataclasses.asdict(config), overwrite=config.overwrite)
    started = time.perf_counter(), time.process_time()
    places = fit(config, dataset)
    took = {"seconds": round(time.perf_counter() - started[0], 1), "cpu_seconds": round(time.process_time() - started[1], 1)}
    result = {**scores(config, places, dataset), **took}
    labels = {} if dataset.test_labels is None else {"labels": dataset.test_labels.cpu().numpy()}
    write_latents(folder.path, dataset.class_names, latents=places.test.numpy(), **labels)
    _files.write_json(folder.path / EVALUATION, result)
    pictures = []
    if config.figures and config.latent_dim == 2:
        panel = (config.method.name, places.test, dataset.test_labels)
        names = dataset.class_names or None
        pictures.append(plots.comparison(folder.figures / "latents.png", [panel], dataset.name, class_names=names, overwrite=True))
    return Result(folder, result, pictures)


def write_latents(folder: Path, class_names: Sequence[str], **arrays: np.ndarray) -> None:
    """Write the latents of a run, with the names of its classes, into its folder."""
    with _files.replacing(folder / LATENTS) as fresh:
        np.savez_compressed(fresh, class_names=np.array(class_names, dtype=str), **arrays)


def read_latents(folder: Path) -> dict[str, np.ndarray]:
    """What `write_latents` wrote.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with np.load(folder / LATENTS, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        _checks.fail(str(folder / LATENTS), "the latents of a run", _checks.one_line(error), "remove the folder to have the run again")
    _checks.require({"latents", "class_names"} <= found.keys(), str(folder / LATENTS), "the latents of a run", ", ".join(found))
    return found


def fit(config: Config, dataset: Dataset) -> Map:
    """The embedding `config.method.name` of the training examples, with the test examples projected onto it.

    Raises:
        InputError: A missing library, or one that cannot project new examples where there are some.
    """
    _checks.choice(config.method.name, MAPS, "method")
    train, test = (dataset.inputs(split=split).flatten(1).double().cpu().numpy() for split in ("train", "test"))
    same = train.shape == test.shape and bool((train == test).all())
    places = {"pca": _pca, "tsne": _tsne, "umap": _umap}[config.method.name](config, train, None if same else test)
    first, second = places if len(places) == 2 else (places[0], places[0])
    return Map(torch.from_numpy(np.ascontiguousarray(first)).float(), torch.from_numpy(np.ascontiguousarray(second)).float())


def scores(config: Config, places: Map, dataset: Dataset) -> dict[str, float]:
    """Metrics of an embedding: nearest-neighbour accuracy, and scores of clusters by k-means and by a Gaussian mixture."""
    if dataset.test_labels is None:
        return {}
    from sklearn.cluster import KMeans

    labels, count = dataset.labels(split="test"), config.method.clustering.num_clusters
    nearest = KMeans(count, random_state=config.seed, n_init=10).fit(places.train.numpy()).predict(places.test.numpy())
    return {
        "knn_accuracy": metrics.knn_accuracy(places.train, dataset.labels(), places.test, labels),
        **metrics.cluster_scores(labels, torch.from_numpy(nearest.astype(np.int64))),
        **released_clusters(config, places.train, places.test, labels),
    }


def _pca(config: Config, train: np.ndarray, test: np.ndarray | None) -> list[np.ndarray]:
    from sklearn.decomposition import PCA

    fitted = PCA(config.latent_dim).fit(train)
    return [fitted.transform(part) for part in (train, test) if part is not None]


def _tsne(config: Config, train: np.ndarray, test: np.ndarray | None) -> list[np.ndarray]:
    """t-SNE by openTSNE, which can project new examples, or else by scikit-learn."""
    perplexity = config.method.map.perplexity
    if importlib.util.find_spec("openTSNE") is not None:
        from openTSNE import TSNE

        fitted = TSNE(config.latent_dim, perplexity=perplexity, random_state=config.seed, n_jobs=1).fit(train)
        return [np.asarray(fitted), *([] if test is None else [np.asarray(fitted.transform(test))])]
    _checks.require(test is None, "method", "one that places new examples, or dataset.genotypes.held_out=0", "tsne without openTSNE", _HINT)
    from sklearn.manifold import TSNE

    return [TSNE(config.latent_dim, perplexity=perplexity, random_state=config.seed, n_jobs=1).fit_transform(train)]


def _umap(config: Config, train: np.ndarray, test: np.ndarray | None) -> list[np.ndarray]:
    _checks.require(importlib.util.find_spec("umap") is not None, "method", "an installed package umap-learn", "umap without it", _HINT)
    from umap import UMAP

    options, before, threads = config.method.map, np.random.get_state(), torch.get_num_threads()
    # For disconnected data UMAP draws from NumPy's global generator, and its compiler sets the number of OpenMP threads, which torch shares.
    np.random.seed(config.seed)
    fitted = UMAP(options.n_neighbors, config.latent_dim, min_dist=options.min_dist, random_state=config.seed, n_jobs=1).fit(train)
    places = [fitted.embedding_, *([] if test is None else [fitted.transform(test)])]
    np.random.set_state(before)
    torch.set_num_threads(threads)
    return places


TASKS["map"] = run_map
