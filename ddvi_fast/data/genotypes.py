"""Genotypes as a data set: packed rows on the device, unpacked as minibatches are gathered; or their principal components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.data.dataset import Dataset, from_arrays, random_split
from ddvi_fast.genomes.cache import cached_store
from ddvi_fast.genomes.convert import write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.labels import read_labels
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.simulate import Simulation, simulated_genomes
from ddvi_fast.genomes.sources import open_source
from ddvi_fast.genomes.standardise import Scaling
from ddvi_fast.genomes.store import GenotypeStore, count_codes
from ddvi_fast.genomes.unpack import MISSING, packed_width, unpack, unpack_scaled

_BED, _LABELS, _LEAST_FREQUENCY = "1kg_phase3.bed", "1kg_phase3_samples.tsv", 0.01


@dataclass(frozen=True, eq=False)
class PackedDataset(Dataset):
    """Genotypes as they are, 2-bit packed: `inputs` are counts 0 to 2 for a binomial likelihood of two trials.

    Args:
        train_inputs, test_inputs: packed rows, uint8 [N, ceil(M / 4)].
        fill: what a missing call counts, float32 [M]: its mean among the training calls.

    Example:
        >>> rows = torch.tensor([[0b11100100], [0b00000010]], dtype=torch.uint8)
        >>> data = PackedDataset("tiny", rows, None, rows[:1], None, value_range=(0.0, 2.0), fill=torch.full((4,), 0.5))
        >>> data.inputs(), data.called(split="test")
        (tensor([[0.0000, 1.0000, 2.0000, 0.5000], [2.0000, 0.0000, 0.0000, 0.0000]]), tensor([[ True,  True,  True, False]]))
    """

    fill: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.tensor(self.fill, "fill", (None,))
        packed = self.train_inputs.dtype == torch.uint8 and self.train_inputs.shape[1:] == (packed_width(len(self.fill)),)
        _checks.require(packed, "train_inputs", f"packed rows of {packed_width(len(self.fill))} bytes", self.train_inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Variants of one example."""
        return (len(self.fill),)

    def inputs(self, indices: Tensor | slice | None = None, split: str = "train") -> Tensor:
        """Counts of the examples `indices`, float32 [B, M], unpacked where the packed rows are."""
        return unpack_scaled(self._rows(indices, split), torch.zeros_like(self.fill), torch.ones_like(self.fill), self.fill)

    def called(self, indices: Tensor | slice | None = None, split: str = "train") -> Tensor:
        """Which of these counts were observed, bool [B, M]."""
        return unpack(self._rows(indices, split), len(self.fill)) != MISSING

    def _rows(self, indices: Tensor | slice | None, split: str) -> Tensor:
        raw = self._split(split)[0]
        return raw if indices is None else raw[indices]


def genotypes_dataset(
    store: GenotypeStore, labels: str | None = None, *, test_size: int | float = 0.2, seed: int = 0, name: str = "genomes"
) -> PackedDataset:
    """A store's genotypes, split at random into training and test samples.

    Args:
        store: the genotypes; all packed rows are read into memory.
        labels: a column of labels.
        test_size: samples for the test, a count or a fraction.
        seed: of the split.
        name: of the data set.
    """
    train, test = random_split(len(store), test_size, seed)
    numbers, names = (None, ()) if labels is None else store.labels(labels)
    packed = torch.from_numpy(np.array(store.packed))
    return PackedDataset(
        name, packed[train], None if numbers is None else numbers[train], packed[test], None if numbers is None else numbers[test],
        num_classes=len(names), value_range=(0.0, 2.0), class_names=names, fill=Scaling.of(count_codes(store, train.numpy())).mean,
    )  # fmt: skip


def components_dataset(
    store: GenotypeStore, labels: str | None = None, *, n_components: int = 20, test_size: int | float = 0.2, seed: int = 0, name: str = "genomes"
) -> tuple[Dataset, GenotypePCA]:
    """Principal components of the training samples, and the test samples projected onto them, each divided by one number: the standard
    deviation of the first component. Returns the data set and the fitted components."""
    train, test = (part.numpy() for part in random_split(len(store), test_size, seed))
    pca = GenotypePCA(n_components, drop_constant=True, seed=seed)
    scores = pca.fit_transform(store, rows=train)
    unit = float(scores[:, 0].std())
    numbers, names = (None, ()) if labels is None else store.labels(labels)
    data = from_arrays(
        name, scores / unit, None if numbers is None else numbers[train], test_inputs=pca.transform(store, rows=test) / unit,
        test_labels=None if numbers is None else numbers[test], num_classes=len(names), class_names=names,
    )  # fmt: skip
    return data, pca


def load_simulated(seed: int) -> Dataset:
    """Twenty principal components of simulated genomes, labelled by population, see `genomes.simulate`."""
    return components_dataset(simulated_genomes(Simulation(seed=seed)), "population", seed=seed)[0]


def load_1kg(data_dir: Path | None, seed: int) -> Dataset:
    """Twenty principal components of the 1000 Genomes Project's people, labelled by their 26 populations; variants from 1% up.

    Reads ``1kg_phase3.bed`` and ``1kg_phase3_samples.tsv`` in `data_dir` or its folder ``1kg``; the store made of them is cached.

    Raises:
        InputError: no such files.
    """
    folders = [] if data_dir is None else [data_dir / "1kg", data_dir]
    folder = next((folder for folder in folders if (folder / _BED).is_file()), None)
    looked = ", ".join(map(str, folders)) or "no folder (data_dir and DDVI_FAST_DATA are not set)"
    _checks.require(folder is not None, "1kg", f"the file {_BED} and those beside it", f"none; looked in {looked}")
    bed, table, filters = folder / _BED, read_labels(folder / _LABELS), Filters(min_frequency=_LEAST_FREQUENCY)
    files = [bed, bed.with_suffix(".bim"), bed.with_suffix(".fam"), folder / _LABELS]
    key = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
    store = cached_store("1kg", {**key, "least": _LEAST_FREQUENCY}, lambda made: write_store(open_source(bed), made, table, filters=filters))
    return components_dataset(store, "population", seed=seed, name="1kg")[0]
