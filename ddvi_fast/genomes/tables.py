"""Tables of the variants and samples of a genotype file, and readers of text with any compression and line ends."""

from __future__ import annotations

import functools
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ddvi_fast import _checks

_CHROMOSOMES = {"M": "MT", "90": "MT", "91": "XY", "PAR1": "XY", "PAR2": "XY"}
_AFTER_AUTOSOMES = ("X", "Y", "XY", "MT")  # of PLINK's numbers
HUMAN = 22
_ACCESSION = re.compile(r"NC_0*(\d+)\.\d+")  # of the human reference in RefSeq
_MITOCHONDRION = "12920"
_GENBANK = re.compile(r"CM000(6(?:6[3-9]|7\d|8[0-6]))\.\d+")  # of the human reference
_ODD = b"\v\f\x1c\x1d\x1e\x1f"  # white space of Python in ASCII, besides spaces, tabs and line ends
_LINES = 4096  # of a block that is searched for them
UNKNOWN_CHROMOSOMES = frozenset(("0", ".", ""))
_NUM_AUTOSOMES = ContextVar("num_autosomes", default=HUMAN)


@dataclass(frozen=True, eq=False)
class VariantTable:
    """Variants in the order of the file; each column has length M.

    Args:
        chromosome: Names without the prefix "chr"; X, Y, XY and MT for PLINK's 23 to 26.
        position: Positions in base pairs, int64.
        name: Identifiers of the file; ``chromosome:position:other:counted`` where it has none.
        counted: Alleles whose copies the genotypes count (A1 of PLINK, the alternate allele of a VCF, the first of EIGENSTRAT).
        other: The other alleles.
    """

    chromosome: np.ndarray
    position: np.ndarray
    name: np.ndarray
    counted: np.ndarray
    other: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def take(self, chosen: np.ndarray | slice) -> VariantTable:
        """The variants `chosen`: indices, a mask or a slice."""
        chosen = _checks.rows(chosen, len(self), "chosen")
        return VariantTable(*(column[chosen] for column in vars(self).values()))

    def autosomal(self) -> np.ndarray:
        """Mask of the variants on autosomes, for humans chromosomes 1 to 22, bool [M]."""
        names = frozenset(str(number) for number in range(1, num_autosomes() + 1))
        return np.fromiter((name in names for name in self.chromosome), bool, len(self))

    @staticmethod
    def from_rows(rows: Sequence[tuple[str, int, str, str, str]]) -> VariantTable:
        """Table of the rows ``(chromosome, position, name, counted, other)`` of a file."""
        chromosome, position, name, counted, other = zip(*rows, strict=True) if rows else ((),) * 5
        number = num_autosomes()
        chromosome = [plain_chromosome(value, number) for value in chromosome]
        parts = zip(name, chromosome, position, other, counted, strict=True)
        named = [f"{c}:{p}:{o}:{a}" if n in (".", "") else n for n, c, p, o, a in parts]
        return VariantTable(_strings(chromosome), np.array(position, np.int64), _strings(named), _strings(counted), _strings(other))

    @staticmethod
    def join(parts: Sequence[VariantTable]) -> VariantTable:
        """Concatenate tables."""
        return VariantTable(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Samples in the order of the file.

    Args:
        name: Unique names, length N.
        labels: Further columns by name, each of length N.
    """

    name: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.name)

    def take(self, chosen: np.ndarray) -> SampleTable:
        """The samples `chosen`, indices or a mask."""
        chosen = _checks.rows(chosen, len(self), "chosen")
        return SampleTable(self.name[chosen], {key: column[chosen] for key, column in self.labels.items()})

    @staticmethod
    def from_names(names: Sequence[str], path: Path, families: Sequence[str] | None = None) -> SampleTable:
        """Table of the sample names of a file; where two are the same, all are written ``family:name`` if `families` are given.

        Raises:
            InputError: There are none, or two are the same.
        """
        _checks.require(len(names) > 0, str(path), "at least one sample", 0)
        if families is not None and len(set(names)) < len(names):
            names = [f"{family}:{name}" for family, name in zip(families, names, strict=True)]
        unique, counts = np.unique(_strings(names).astype(str), return_counts=True)
        _checks.require(len(unique) == len(names), str(path), "sample names that differ", f"{unique[counts.argmax()]} {counts.max()} times")
        return SampleTable(_strings(names))


@contextmanager
def chromosome_set(number: int) -> Iterator[None]:
    """A context in which tables are read as those of a species with this number of autosomes."""
    token = _NUM_AUTOSOMES.set(_checks.integer(number, "num_autosomes", 1, 90))
    try:
        yield
    finally:
        _NUM_AUTOSOMES.reset(token)


def num_autosomes() -> int:
    """Number of autosomes of the species as which tables are read."""
    return _NUM_AUTOSOMES.get()


@functools.lru_cache(maxsize=4096)
def plain_chromosome(name: str, autosomes: int = HUMAN) -> str:
    """Name of a chromosome without prefix, the same for all of its spellings; the numbers after the autosomes are X, Y, XY and MT.

    Example:
        >>> [plain_chromosome(name) for name in ("chr7", "chr07", "NC_000007.14", "CM000669.2", "23", "chrM")]
        ['7', '7', '7', '7', 'X', 'MT']
        >>> plain_chromosome("23", autosomes=29)
        '23'
    """
    bare = name[3:] if name[:3].lower() == "chr" else name
    if autosomes == HUMAN and (found := _ACCESSION.fullmatch(bare)) is not None:
        bare = "MT" if found[1] == _MITOCHONDRION else found[1]
    elif autosomes == HUMAN and (found := _GENBANK.fullmatch(bare)) is not None:
        bare = str(int(found[1]) - 662)
    if bare.isdecimal():
        bare = bare.lstrip("0") or "0"
        after = int(bare) - autosomes
        if 1 <= after <= len(_AFTER_AUTOSOMES):
            return _AFTER_AUTOSOMES[after - 1]
    elif bare.lower() in ("x", "y", "xy", "m", "mt"):
        bare = bare.upper()
    return _CHROMOSOMES.get(bare, bare)


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a text file, plain or compressed by gzip, without their Unix or Windows ends.

    Raises:
        InputError: The file is missing, cannot be read, or its compressed stream is truncated.
    """
    require_file(path)
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        _checks.fail(str(path), "a readable file", _checks.one_line(error))


def read_fields(path: Path, least: int, what: str) -> Iterator[list[str]]:
    """Fields of each line that has any, split at spaces and tabs; lines that start with # are comments.

    Raises:
        InputError: A line has fewer than `least` fields; `what` describes them.
    """
    lines, first = read_lines(path), 1
    while block := list(islice(lines, _LINES)):
        whole = b"".join(block)
        plain = whole.isascii() and len(whole.translate(None, _ODD)) == len(whole)
        for number, line in enumerate(block, first):
            text = as_text(line, path, number)
            fields = text.split() if plain else split_fields(text)
            if fields and not fields[0].startswith("#"):
                _checks.require(len(fields) >= least, f"{path}, line {number}", what, f"{len(fields)} fields")
                yield fields
        first += len(block)


def split_fields(line: str) -> list[str]:
    """Split a line at spaces and tabs, but not at other characters that Python calls white space, which occur in names.

    Example:
        >>> split_fields("1\\tA\\u00a0B  C")
        ['1', 'A\\xa0B', 'C']
    """
    return [field for field in line.replace("\t", " ").split(" ") if field]


def as_text(line: bytes, path: Path, number: int) -> str:
    """Decode a line; `InputError` where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        _checks.fail(f"{path}, line {number}", "UTF-8 text", "other bytes")


def require_file(path: Path) -> None:
    """Raise `InputError` unless `path` is a file."""
    _checks.require(path.is_file(), "file", "an existing file", f"{path}, which is {'a folder' if path.is_dir() else 'missing'}")


def read_variants(path: Path, columns: Mapping[str, int], what: str, without_morgans: bool = False) -> VariantTable:
    """Variants of a text file with a line for each.

    Args:
        path: The file.
        columns: Index of the field of each column of the table.
        what: Description of the six fields of a line.
        without_morgans: Whether the third field may be left out (bool, default False).

    Raises:
        InputError: There is no variant, a line has fewer fields, or a position is not a whole number.
    """
    rows = []
    places = [columns[column] for column in VariantTable.__dataclass_fields__]
    short = [place - (place > 2) for place in places]
    for number, fields in enumerate(read_fields(path, 5 if without_morgans else 6, what), 1):
        chromosome, position, name, counted, other = (fields[place] for place in (short if len(fields) == 5 else places))
        rows.append((chromosome, _position(position, path, number), name, counted, other))
    _checks.require(len(rows) > 0, str(path), "at least one variant", 0)
    return VariantTable.from_rows(rows)


def _position(text: str, path: Path, line: int) -> int:
    """A whole number, which some programs write with a decimal point."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    _checks.fail(f"{path}, variant {line}", "a position in base pairs", text)


def _strings(values: Sequence[str]) -> np.ndarray:
    # Objects, because a string of fixed width would have the width of the longest insertion for every variant.
    column = np.empty(len(values), object)
    column[:] = values
    return column
