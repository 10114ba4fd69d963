"""Labels of samples from the tables that people have, with rows in any order.

Columns are separated by tabs, commas, semicolons or spaces, with or without quotes and a heading, in UTF-8 or UTF-16; lines that start with
# are comments, unless the last of them is the heading. The samples' names are in the column, or the pair of columns for family and
individual, that has most of the file's names. A .fam file (whose family is the column ``population``) and an .ind file (``population`` and
``sex``) are tables, too.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.tables import SampleTable, as_text, read_lines, require_file
from ddvi_fast.standardization import tell

SAMPLE_COLUMNS = ("sample", "iid", "sample_id", "sampleid", "individual", "individual_id", "individual id", "sample name", "id", "s", "name")
# Values that mean no label in the field's files: of R, PLINK, Poseidon and EIGENSOFT.
NO_LABEL = frozenset(("", "NA", "N/A", "NaN", "nan", "n/a", "<NA>", ".", "..", "?", "??", "???", "Ignore", "ignore"))
_WITHOUT_HEADER = {".fam": ("population", "sample", "father", "mother", "sex", "phenotype"), ".ind": ("sample", "sex", "population")}
_NAMED = 5  # number of samples that a message names
_QUOTED = re.compile(r'"([^"]*)"|([^ \t]+)')

Rows = list[list[str]]


@dataclass(frozen=True)
class LabelTable:
    """A table whose columns and rows are known once the samples are.

    Args:
        path: The file.
        readings: The rows of the file for each separator by which all rows have the same number of columns.
        columns: Names of the columns of a file without a heading (default: the first row, unless it is a sample's).
    """

    path: Path
    readings: list[Rows]
    columns: tuple[str, ...] = ()


class _Keyed(NamedTuple):
    """One reading of a table: the samples' names of its rows, and the column that has them."""

    rows: Rows
    names: list[str]
    column: int


def read_labels(path: str | Path) -> LabelTable:
    """Read a table.

    Raises:
        InputError: The table has no rows, one column, or rows of different lengths.
    """
    path = Path(path).expanduser()
    lines = _lines(path)
    ending = next((ending for ending in _WITHOUT_HEADER if path.name.lower().endswith((ending, ending + ".gz"))), None)
    _checks.require(len(lines) > (0 if ending else 1), str(path), "a header and at least one row", "none")
    split = {separator: [fields_of(line, separator) for line in lines] for separator in "\t,; "}
    readings = [rows for rows in (_even(each, lines[0].startswith('"')) for each in split.values()) if rows]
    if not readings:
        rows = split[next((each for each in "\t,;" if each in lines[0]), " ")]
        _checks.require(max(map(len, rows)) > 1, str(path), "a column of sample names and one of labels", f"the column {rows[0][0]!r} alone")
        width, counts = len(rows[0]), [len(row) for row in rows]
        wrong = next(number for number, count in enumerate(counts, 1) if count != width)
        _checks.fail(f"{path}, row {wrong}", f"{width} columns, as in the first row", counts[wrong - 1])
    return LabelTable(path, readings, _WITHOUT_HEADER[ending] if ending else ())


def attach(samples: SampleTable, table: LabelTable, leave_out: bool = False) -> tuple[SampleTable, np.ndarray]:
    """Add the columns of a table to samples; also returns a mask of the labelled samples, bool [N].

    A sample that is not in the table, or all of whose values are empty, is unlabelled; values of `NO_LABEL` are empty.

    Args:
        samples: Samples, whose order is kept.
        table: Table of `read_labels`, which may have more rows than there are samples.
        leave_out: Whether to accept unlabelled samples, whose labels are then empty (bool, default False).

    Raises:
        InputError: There are unlabelled samples without `leave_out`, none of the samples is in the table, or two rows of one sample differ.
    """
    keyed = _keyed(samples, table)
    header, first = _header(keyed, table, samples)
    columns = [name for place, name in enumerate(header) if place != keyed.column]
    labels = _by_sample(samples, keyed, table.path, first)
    values = [labels.get(name, [""] * len(columns)) for name in samples.name]
    found = np.array([any(row) for row in values], bool)
    unlabelled = samples.name[~found]
    named = ", ".join(unlabelled[:_NAMED]) + (", .." if len(unlabelled) > _NAMED else "")
    hint = "leave_out_unlabelled (--leave-out-unlabelled) leaves them out"
    wanted = f"a label for each of {len(samples)} samples"
    _checks.require(leave_out or not len(unlabelled), "labels", wanted, f"none for {len(unlabelled)}: {named}", hint)
    rows = np.array(values, dtype=object)
    return SampleTable(samples.name, {**samples.labels, **{name: rows[:, place] for place, name in enumerate(columns)}}), found


def _lines(path: Path) -> list[str]:
    """Lines that are neither empty nor comments; the last comment before the first row, if it is the heading, without its #."""
    lines = [line for line in text_of(path) if line.strip(" \t")]
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    heading = [line.lstrip("#") for line in lines[max(0, first - 1) : first]]
    rows = [line for line in lines[first:] if not line.startswith("#")]
    is_heading = heading and rows and any(len(fields_of(heading[0], each)) == len(fields_of(rows[0], each)) > 1 for each in "\t,; ")
    return heading + rows if is_heading else rows


def text_of(path: Path) -> list[str]:
    require_file(path)
    with path.open("rb") as file:
        if file.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return [as_text(line, path, number).removeprefix("\ufeff") for number, line in enumerate(read_lines(path), 1)]
    try:
        return path.read_text("utf-16").split("\n")
    except UnicodeError:
        _checks.fail(str(path), "UTF-8 or UTF-16 text", "other bytes")


def fields_of(line: str, separator: str) -> list[str]:
    """Values of a line, without quotes."""
    if separator == " ":
        return [quoted or plain for quoted, plain in _QUOTED.findall(line)]
    if separator == "\t":
        values = [value.strip(" ") for value in line.split("\t")]
        return [value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value for value in values]
    return [value.strip(" \t") for value in next(csv.reader([line], delimiter=separator))]


def _even(rows: Rows, quoted: bool) -> Rows | None:
    """Rows of one length, of at least two columns, without columns at the end that are all empty; None where the lengths differ."""
    width = max(max((place for place, value in enumerate(row, 1) if value), default=0) for row in rows)
    if quoted and len(rows) > 1 and len(rows[0]) == width - 1 and all(len(row) >= width for row in rows[1:]):
        rows = [["row", *rows[0]], *rows[1:]]  # R leaves out the heading of the names of rows
    return [row[:width] for row in rows] if width > 1 and all(len(row) >= width for row in rows) else None


def _keyed(samples: SampleTable, table: LabelTable) -> _Keyed:
    """The reading of the table, and the column, that has most of the samples' names; of equals one with a usual heading, the first."""
    names, best = set(samples.name), None
    for rows in table.readings:
        for column in range(len(rows[0])):
            alone = [row[column] for row in rows]
            families = [] if column == 0 else [[f"{row[column - 1]}{mark}{row[column]}" for row in rows] for mark in ":_"]
            for each in (alone, *families):
                rank = (len(names.intersection(each)), rows[0][column].lower() in SAMPLE_COLUMNS)
                if best is None or rank > best[0]:
                    best = (rank, _Keyed(rows, each, column))
    (count, _), keyed = _checks.instance(best, tuple, "labels", "a table")
    got = f"a sample is called {samples.name[0]} here and {keyed.names[-1]} there"
    if all("_" in name and name.partition("_")[2] in {row for each in table.readings[0] for row in each} for name in samples.name[:_NAMED]):
        got += "; names as FAMILY_INDIVIDUAL are of plink --recode vcf, and vcf-iid writes individuals alone"
    _checks.require(count > 0, "labels", "a table with this file's samples", "one with none of them", got)
    return keyed


def _header(keyed: _Keyed, table: LabelTable, samples: SampleTable) -> tuple[list[str], int]:
    """Names of the columns, and the number of the first row that is a sample's."""
    rows, column = keyed.rows, keyed.column
    if table.columns:
        names = [*table.columns, *(f"column{number}" for number in range(len(table.columns) + 1, len(rows[0]) + 1))]
        return names[: len(rows[0])], 0
    others = [place for place in range(len(rows[0])) if place != column]
    repeated = any(rows[0][place] and rows[0][place] in {row[place] for row in rows[1:]} for place in others)
    if keyed.names[0] in set(samples.name) or repeated:
        header = [f"column{number}" for number in range(1, len(rows[0]) + 1)]
        header[others[-1]] = "population"
        tell(f"labels: {table.path} has no heading; its labels are named {', '.join(header[place] for place in others)}")
        return header, 0
    header = [name or f"column{number}" for number, name in enumerate(rows[0], 1)]
    _checks.require(len(set(header)) == len(header), str(table.path), "columns of different names", ", ".join(header) + " ")
    return header, 1


def _by_sample(samples: SampleTable, keyed: _Keyed, path: Path, first: int) -> dict[str, list[str]]:
    """Labels of each sample of the file, without those that mean none, of which a warning tells."""
    wanted, found = set(samples.name), dict[str, list[str]]()
    without: Counter[str] = Counter()
    for number, (name, row) in enumerate(zip(keyed.names[first:], keyed.rows[first:], strict=True), first + 1):
        if name not in wanted:
            continue
        values = [value for place, value in enumerate(row) if place != keyed.column]
        known = found.setdefault(name, values)
        _checks.require(known == values, f"{path}, row {number}", "one row a sample", f"another of {name} with other labels")
    for name, values in found.items():
        without.update(value for value in values if value and value in NO_LABEL)
        found[name] = ["" if value in NO_LABEL else value for value in values]
    if without:
        tell(f"labels: taken as no label: {', '.join(f'{value} ({count} times)' for value, count in without.items())}")
    return found
