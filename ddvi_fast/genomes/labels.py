"""Labels of samples from a table whose columns are separated by tabs, commas or white space, with rows in any order.

A .fam file (whose family is the column ``population``) and an .ind file (``population`` and ``sex``) are tables, too.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.tables import SampleTable, as_text, read_lines

SAMPLE_COLUMNS = ("sample", "iid", "#iid", "sample_id", "sampleid", "individual", "individual_id", "sample name", "id", "s", "name")
_WITHOUT_HEADER = {".fam": ("population", "sample", "father", "mother", "sex", "phenotype"), ".ind": ("sample", "sex", "population")}
_NAMED = 5  # number of samples that a message names


def read_labels(path: str | Path) -> dict[str, dict[str, str]]:
    """Read a table: sample name -> column -> value.

    The sample names are in the first column whose heading is one of `SAMPLE_COLUMNS`, in upper or lower case, else in the first of all.

    Raises:
        InputError: The table has no rows, rows of another length than the header, or two different rows of one sample.
    """
    path = Path(path).expanduser()
    rows = _split(path)
    ending = next((ending for ending in _WITHOUT_HEADER if path.name.lower().endswith((ending, ending + ".gz"))), None)
    header = list(_WITHOUT_HEADER[ending]) if ending else (rows.pop(0) if rows else [])
    _checks.require(len(rows) > 0, str(path), "a header and at least one row", "none")
    _checks.require(len(header) >= 2, str(path), "a column of sample names and one of labels", f"the column {header[0]!r} alone")
    _checks.require(len(set(header)) == len(header), str(path), "columns of different names", ", ".join(header) + " ")
    key = next((place for place, name in enumerate(header) if name.lower() in SAMPLE_COLUMNS), 0)
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 1 if ending else 2):
        _checks.require(len(row) == len(header), f"{path}, row {number}", f"{len(header)} columns, as in the first row", len(row))
        values = {name: value for place, (name, value) in enumerate(zip(header, row, strict=True)) if place != key}
        known = table.setdefault(row[key], values)
        _checks.require(known == values, f"{path}, row {number}", "one row a sample", f"another of {row[key]} with other labels")
    return table


def attach(samples: SampleTable, table: dict[str, dict[str, str]], leave_out: bool = False) -> tuple[SampleTable, np.ndarray]:
    """Add the columns of a table to samples; also returns a mask of the labelled samples, bool [N].

    A sample that is not in the table, or all of whose values are empty, is unlabelled.

    Args:
        samples: Samples, whose order is kept.
        table: Table of `read_labels`, which may have more rows than there are samples.
        leave_out: Whether to accept unlabelled samples, whose labels are then empty (bool, default False).

    Raises:
        InputError: There are unlabelled samples without `leave_out`, or none of the samples is in the table.
    """
    columns = list(next(iter(table.values())))
    found = np.array([any(table.get(name, {}).values()) for name in samples.name], bool)
    if not found.any():
        seen, known = samples.name[0], next(iter(table))
        _checks.fail("labels", "a table with this file's samples", "one with none of them", f"a sample is called {seen} here and {known} there")
    unlabelled = samples.name[~found]
    named = ", ".join(unlabelled[:_NAMED]) + (", .." if len(unlabelled) > _NAMED else "")
    hint = "leave_out_unlabelled (--leave-out-unlabelled) leaves them out"
    wanted = f"a label for each of {len(samples)} samples"
    _checks.require(leave_out or not len(unlabelled), "labels", wanted, f"none for {len(unlabelled)}: {named}", hint)
    rows = np.array([[table.get(name, {}).get(column, "") for column in columns] for name in samples.name], dtype=object)
    return SampleTable(samples.name, {**samples.labels, **{name: rows[:, place] for place, name in enumerate(columns)}}), found


def _split(path: Path) -> list[list[str]]:
    lines = [as_text(line, path, number).removeprefix("\ufeff") for number, line in enumerate(read_lines(path), 1)]
    lines = [line for line in lines if line.strip()]
    if not lines:
        return []
    if "\t" in lines[0]:
        return [[value.strip() for value in line.split("\t")] for line in lines]
    if "," in lines[0]:
        return [[value.strip() for value in row] for row in csv.reader(lines)]
    return [line.split() for line in lines]
