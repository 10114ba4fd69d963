"""Tests of the committed results files: compact JSON, and tables that are made of it."""

from __future__ import annotations

import pytest

from bench import records
from ddvi_fast import _json

STORED = records.all_records()


@pytest.mark.parametrize("path", STORED, ids=lambda path: str(path.relative_to(records.RESULTS)))
def test_the_table_beside_a_results_file_is_made_of_it(path):
    assert path.with_suffix(".md").read_text(encoding="utf-8") == records.markdown_of(STORED[path]), "run python -m bench.report"
    assert path.read_text(encoding="utf-8") == f"{_json.lines(STORED[path])}\n"


def test_every_results_file_has_a_table_and_every_table_a_results_file():
    tables = {path.with_suffix(".json") for path in records.RESULTS.rglob("*.md")}
    assert tables == set(STORED)


def test_a_record_is_written_with_its_table(tmp_path):
    made = {"commit": "0123456789abcdef", "machine": {"processor": "a processor"}, "versions": {"torch": "2.99"}}
    table = {"title": "Title", "about": ["About."], "headings": ["method", "ELBO"], "formats": ["", ".2f"], "rows": [["vae", -5.256]]}
    record = {"kind": records.TABLE_KIND, "command": "a command", **made, **table}
    text = records.write(tmp_path / "folder" / "name.json", record)
    assert text.startswith("# Title\n\n`a command`, commit 0123456789, a processor, torch 2.99.\nAbout.\n\n| method | ELBO |\n")
    assert text.endswith("\n| vae | -5.26 |\n")
    assert records.read(tmp_path / "folder" / "name.json") == record
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["name.json", "name.md"]
