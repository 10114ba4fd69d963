"""Store of genotypes: a folder with 2-bit packed genotypes, one row per sample, read through a memory map.

- ``genotypes.bin``: packed rows, uint8 [N, ceil(M / 4)] (see `data.packing`).
- ``counts.npy``: number of samples with code 0, 1, 2 and 3 at each variant, int32 [M, 4].
- ``samples.tsv``, ``variants.tsv``: tables with one header line.
- ``store.json``: kind, version and size. ``import.json``: source file and what was left out.

Two files with the same genotypes give stores that differ only in ``import.json``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, _files
from ddvi_fast.data.packed import code_counts
from ddvi_fast.data.packing import PER_BYTE, packed_width, unpack
from ddvi_fast.genomes.tables import HUMAN, SampleTable, VariantTable, read_lines

if TYPE_CHECKING:
    from ddvi_fast.data import Dataset
    from ddvi_fast.estimator.features import Features

KIND, VERSION = "ddvi_fast genotypes", 1
HEADER, GENOTYPES, COUNTS, SAMPLES, VARIANTS, IMPORT = (
    "store.json", "genotypes.bin", "counts.npy", "samples.tsv", "variants.tsv", "import.json",
)  # fmt: skip
_VARIANT_COLUMNS = ("chromosome", "position", "name", "counted", "other")


class GenotypeStore:
    """Store of genotypes, opened for reading. Tables are loaded on first access, genotypes as they are used.

    Args:
        path: Folder written by `import_genotypes`.

    Attributes:
        packed: Packed rows, uint8 [N, ceil(M / 4)], a memory map; writing to it does not change the file.

    Raises:
        InputError: The folder is not a store, has another version, or its files are truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _checks.path(path).expanduser()
        header = _read_header(self.path)
        self.num_samples, self.num_variants = header["num_samples"], header["num_variants"]
        shape = (self.num_samples, packed_width(self.num_variants))
        size = (self.path / GENOTYPES).stat().st_size if (self.path / GENOTYPES).is_file() else 0
        _checks.require(size == shape[0] * shape[1], str(self.path / GENOTYPES), f"{shape[0] * shape[1]} bytes", size, "the store is damaged")
        self.packed = np.memmap(self.path / GENOTYPES, np.uint8, "c", shape=shape)

    def __repr__(self) -> str:
        return f"GenotypeStore({str(self.path)!r}, {self.num_samples} samples, {self.num_variants} variants)"

    def __len__(self) -> int:
        return self.num_samples

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and of variants."""
        return self.num_samples, self.num_variants

    @functools.cached_property
    def samples(self) -> SampleTable:
        """Names and labels of the samples."""
        (_, names), *labels = _read_columns(self.path / SAMPLES, self.num_samples)
        return SampleTable(names, dict(labels))

    def with_samples(self, samples: SampleTable) -> GenotypeStore:
        """Return the same genotypes with other labels; the folder is not changed."""
        _checks.require(len(samples) == len(self), "samples", f"{len(self)} samples", len(samples))
        other = GenotypeStore(self.path)
        other.samples = samples
        return other

    @functools.cached_property
    def variants(self) -> VariantTable:
        """Chromosome, position, name and alleles of the variants."""
        columns = dict(_read_columns(self.path / VARIANTS, self.num_variants))
        columns["position"] = columns["position"].astype(np.int64)
        return VariantTable(*(columns[name] for name in _VARIANT_COLUMNS))

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Number of samples with code 0, 1, 2 and 3 at each variant, int32 [M, 4]."""
        try:
            found = np.load(self.path / COUNTS, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            _checks.fail(str(self.path / COUNTS), "the counts of a store", _checks.one_line(error), "the store is damaged")
        _checks.require(
            found.shape == (self.num_variants, 4), str(self.path / COUNTS), f"shape [{self.num_variants}, 4]", f"shape {list(found.shape)}"
        )
        return found

    @functools.cached_property
    def imported(self) -> dict[str, Any]:
        """Source file of the store, and numbers that the reader and the filters removed."""
        return _files.read_json(self.path / IMPORT, "the store is damaged")

    @property
    def num_autosomes(self) -> int:
        """Number of autosomes of the species as which the genotypes were imported."""
        return _checks.integer(self.imported.get("num_autosomes", HUMAN), f"{self.path / IMPORT}, num_autosomes", 1, 90)

    def tile(self, rows: np.ndarray | slice, first: int, count: int) -> Tensor:
        """Packed codes of some samples at `count` variants from `first` on (a multiple of 4), in memory: uint8 [R, ceil(count / 4)]."""
        rows, width = _checks.rows(rows, self.num_samples), self.packed.shape[1]
        inside = first >= 0 and first % PER_BYTE == 0 and count >= 0 and packed_width(first + count) <= width
        _checks.require(inside, "first, count", f"a multiple of {PER_BYTE}, and codes among the {PER_BYTE * width} of a row", (first, count))
        return torch.from_numpy(np.ascontiguousarray(self.packed[rows, first // PER_BYTE : packed_width(first + count)]))

    def genotypes(self, rows: np.ndarray | slice = slice(None), first: int = 0, count: int | None = None) -> np.ndarray:
        """Codes of some samples at `count` variants (default all) from `first` on, uint8 [R, count]; 3 is a missing call.

        Raises:
            InputError: `rows` are no slice, mask or indices of samples, or there are no such variants.
        """
        first = _checks.integer(first, "first", 0, self.num_variants + 1)
        count = self.num_variants - first if count is None else _checks.integer(count, "count", 0, self.num_variants - first + 1)
        skipped = first % PER_BYTE
        return unpack(self.tile(rows, first - skipped, count + skipped), count + skipped).numpy()[:, skipped:]

    def labels(self, column: str) -> tuple[Tensor, tuple[str, ...]]:
        """Class numbers of a column of labels, int64 [N], and the sorted names of the classes.

        Raises:
            InputError: There is no such column (the message names those that exist), or it is empty for some samples.
        """
        _checks.require(bool(self.samples.labels), "labels", "a column of labels, of which this store has none", column)
        values = self.samples.labels[_checks.choice(column, self.samples.labels, "labels")]
        empty = self.samples.name[values == ""]
        got = f"none for {len(empty)}: {', '.join(empty[:5])}{', ..' if len(empty) > 5 else ''}"
        _checks.require(not len(empty), f"labels[{column}]", f"a label for each of {self.num_samples} samples", got)
        names, numbers = np.unique(values.astype(str), return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int64)), tuple(names.tolist())

    def to_features(
        self, *, binomial: bool, num_components: int, seed: int, missing: str = "least_squares", rows: np.ndarray | None = None
    ) -> tuple[Features, Dataset]:
        """Features of the samples `rows` (default all) for the estimator, and their data set; see `genomes.features.to_features`."""
        # Not at the top: features import the estimator, and with it scikit-learn.
        from ddvi_fast.genomes.features import to_features

        return to_features(self, binomial=binomial, num_components=num_components, seed=seed, missing=missing, rows=rows)


def write_tables(folder: Path, samples: SampleTable, variants: VariantTable, counts: np.ndarray, imported: dict[str, Any]) -> None:
    """Write all files of a store except the genotypes, the header last."""
    # A label may be called "sample", too: the first column has the names, whatever the headings.
    _write_columns(folder / SAMPLES, [("sample", samples.name), *samples.labels.items()])
    _write_columns(folder / VARIANTS, [(name, getattr(variants, name)) for name in _VARIANT_COLUMNS])
    np.save(folder / COUNTS, counts)
    _files.write_json(folder / IMPORT, imported)
    header = {"kind": KIND, "version": VERSION, "num_samples": len(samples), "num_variants": len(variants)}
    _files.write_json(folder / HEADER, header)


def is_store(path: Path) -> bool:
    """Whether a folder is a store of any version."""
    try:
        return _files.read_json(path / HEADER).get("kind") == KIND
    except _checks.InputError:
        return False


def count_codes(store: GenotypeStore, rows: np.ndarray, step: int = 4096) -> np.ndarray:
    """The same as `store.counts` for some of the samples."""
    parts = [code_counts(store.genotypes(rows, first, min(step, store.num_variants - first)).T) for first in range(0, store.num_variants, step)]
    return np.concatenate(parts)


def _read_header(path: Path) -> dict[str, Any]:
    is_what = "none" if path.is_dir() else "a file" if path.is_file() else "missing"
    _checks.require(is_store(path), "store", "a folder made by `ddvi-fast data import`", f"{path}, which is {is_what}")
    header = _files.read_json(path / HEADER)
    version = header.get("version")
    _checks.require(version == VERSION, f"{path}", f"a store of version {VERSION}", version, "import the genotypes again")
    for name in ("num_samples", "num_variants"):
        _checks.integer(header.get(name), f"{path / HEADER}, {name}", at_least=0)
    return header


def _write_columns(path: Path, columns: Sequence[tuple[str, np.ndarray]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(name for name, _ in columns) + "\n")
        file.writelines("\t".join(map(str, row)) + "\n" for row in zip(*(column for _, column in columns), strict=True))


def _read_columns(path: Path, length: int) -> list[tuple[str, np.ndarray]]:
    lines = read_lines(path)
    names = next(lines, b"").decode().split("\t")
    rows = [line.decode().split("\t") for line in lines]
    whole = len(rows) == length and all(len(row) == len(names) for row in rows)
    _checks.require(whole, str(path), f"{length} rows of {len(names)} columns", f"{len(rows)} rows", "the store is damaged")
    table = np.array(rows, dtype=object).reshape(length, len(names))
    return [(name, table[:, place]) for place, name in enumerate(names)]
