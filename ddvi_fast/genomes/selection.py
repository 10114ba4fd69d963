"""Lists of people and of variants, as PLINK reads them, and regions of chromosomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.labels import fields_of, text_of
from ddvi_fast.genomes.tables import SampleTable, VariantTable, num_autosomes, plain_chromosome, split_fields
from ddvi_fast.standardization import tell

_REGION = re.compile(r"(?P<chromosome>[^:\s]+)(:(?P<first>[\d,]*)(?P<range>-(?P<last>[\d,]*))?)?")
_COMMENT = re.compile(r"[ \t]+#.*")  # after the values of a line
_NAMED = 3  # number of names that a message lists
_END = np.iinfo(np.int64).max


class Region(NamedTuple):
    """Positions of a chromosome, both ends included."""

    chromosome: str
    first: int
    last: int


def people_of(path: str | Path, samples: SampleTable) -> np.ndarray:
    """Mask of the samples that a file lists, bool [N]; a warning names those of its lines that are none.

    A line has a family and an individual, or the individual alone; further columns are ignored. A heading that starts with ``#IID`` or ``#FID``
    says which, as in PLINK 2. Where sample names carry their families (``family:individual``), both must agree. Columns are separated by
    spaces, tabs, commas or semicolons, with or without quotes.

    Raises:
        InputError: The file is missing or empty, or none of the samples is in it.
    """
    path = _checks.path(path, "file").expanduser()
    individual, lines = _lines(path)
    _checks.require(len(lines) > 0, str(path), "at least one person", "none")
    places = {name: place for place, name in enumerate(samples.name)}
    readings = []
    for separator in (" ", "\t", ",", ";"):
        rows = [[field for field in fields_of(line, separator) if field] or [line] for line in lines]
        # The second column has the individuals, unless the file lists samples in the first one, beside something else.
        readings += [[row[0] if individual or len(row) == 1 else _named(row, places) for row in rows], [row[0] for row in rows]]
    names = next((each for each in readings if any(name in places for name in each)), readings[0])
    _tell_of_absent(names, places, path, "people")
    mask = np.zeros(len(samples), bool)
    mask[[places[name] for name in names if name in places]] = True
    return mask


def variants_of(path: str | Path, variants: VariantTable) -> np.ndarray:
    """Mask of the variants whose identifiers a file lists, bool [M]: any number of identifiers a line. A warning names those that are none.

    Raises:
        InputError: The file is missing or empty, or none of the variants is in it.
    """
    path = _checks.path(path, "file").expanduser()
    names = [name for line in _lines(path)[1] for name in split_fields(line)]
    _checks.require(len(names) > 0, str(path), "at least one identifier", "none")
    wanted, known = set(names), set(variants.name)
    hint = "regions (--region) selects by position" if not wanted & known and any(name.isdecimal() for name in names) else ""
    _tell_of_absent(names, known, path, "identifiers", hint)
    return np.fromiter((name in wanted for name in variants.name), bool, len(variants))


def inside(regions: Sequence[str], variants: VariantTable) -> np.ndarray:
    """Mask of the variants in any of the regions, bool [M]."""
    mask = np.zeros(len(variants), bool)
    for region in map(region_of, regions):
        mask |= (variants.chromosome == region.chromosome) & (variants.position >= region.first) & (variants.position <= region.last)
    return mask


def region_of(text: str) -> Region:
    """Region of a text ``chr``, ``chr:position``, ``chr:from-to``, ``chr:from-`` or ``chr:-to``, with or without commas in the numbers.

    Raises:
        InputError: The text is something else, or the region ends before it starts.

    Example:
        >>> region_of("chr6:25,000,000-35,000,000")
        Region(chromosome='6', first=25000000, last=35000000)
    """
    _checks.instance(text, str, "regions", "chromosome:from-to")
    found = _REGION.fullmatch(text.strip())
    first, last = ("", "") if found is None else ((found[name] or "").replace(",", "") for name in ("first", "last"))
    whole = found is not None and (":" not in text or bool(first or last))
    _checks.require(found is not None and whole, "regions", "chromosome:from-to", text)
    end = int(last) if last else int(first) if first and not found["range"] else _END
    region = Region(plain_chromosome(found["chromosome"], num_autosomes()), int(first or 0), end)
    _checks.require(region.first <= region.last, "regions", "a start before the end", text)
    return region


def _lines(path: Path) -> tuple[bool, list[str]]:
    """Whether the heading starts with the individual's name, and the lines that are neither empty nor comments."""
    lines = [_COMMENT.sub("", line.removeprefix("\ufeff")).strip(" \r") for line in text_of(path)]
    return any(split_fields(line)[:1] == ["#IID"] for line in lines[:1]), [line for line in lines if line and not line.startswith("#")]


def _named(row: Sequence[str], places: dict[str, int]) -> str:
    whole = f"{row[0]}:{row[1]}"
    return whole if whole in places else row[1]


def _tell_of_absent(names: Sequence[str], known: dict[str, int] | set[str], path: Path, what: str, hint: str = "") -> None:
    absent = [name for name in dict.fromkeys(names) if name not in known]
    number = len(set(names))
    listed = ", ".join(absent[:_NAMED]) + (", .." if len(absent) > _NAMED else "")
    _checks.require(len(absent) < number, str(path), f"{what} of this file", f"{number} others: {listed}", hint)
    if absent:
        tell(f"{path}: {len(absent):,} of {number:,} {what} are not in the genotype file: {listed}")
