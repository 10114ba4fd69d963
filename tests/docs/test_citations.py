"""Tests of citations in the sources: every cited document is in the repository, and every cited section exists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
METHOD = PROJECT / "docs" / "method.md"
TEXTS = {
    path: path.read_text(encoding="utf-8")
    for folder in ("ddvi_fast", "kernels", "csrc", "bench", "tests", "examples")
    for path in (PROJECT / folder).rglob("*")
    if path.suffix in {".py", ".h", ".hpp", ".cpp", ".cu", ".cuh", ".yaml"} and path != Path(__file__).resolve()
}
# Documents of the repository by their path, and documents in capitals by their name: docs/method.md, README.md.
DOCUMENT = re.compile(r"(?<![\w/.])(?:docs/[\w./-]+\.md|[A-Z][A-Z_]+\.md)\b")
# A section of a document that is not a file: "METHOD section 3".
UNNAMED = re.compile(r"\b[A-Z][A-Z_]{3,}(?:\.md)?,? sections? \d")
SECTIONS = re.compile(r"docs/method\.md,\s+sections? (\d)(?:(?:,| and) (\d))?")


def cited_sections(text: str) -> Iterator[int]:
    """Numbers of the sections of docs/method.md that a text cites."""
    for numbers in SECTIONS.findall(text):
        yield from (int(number) for number in numbers if number)


def sections() -> list[int]:
    """Numbers of the sections of docs/method.md, in their order."""
    return [int(number) for number in re.findall(r"^## (\d+)\. ", METHOD.read_text(encoding="utf-8"), re.M)]


def test_sections_of_the_method_are_numbered_in_order() -> None:
    assert sections() == list(range(1, len(sections()) + 1)) and len(sections()) >= 6


def test_numbers_of_formulas_are_those_of_their_section() -> None:
    parts = re.split(r"^## (\d+)\. ", METHOD.read_text(encoding="utf-8"), flags=re.M)[1:]
    for section, text in zip(parts[::2], parts[1::2], strict=True):
        numbers = re.findall(r"\\qquad \((\d+\.\d+)\)", text)
        assert numbers == [f"{section}.{index + 1}" for index in range(len(numbers))]


def test_every_cited_section_exists() -> None:
    cited = [(path, number) for path, text in TEXTS.items() for number in cited_sections(text)]
    assert len(cited) > 20
    assert not [(path, number) for path, number in cited if number not in sections()]


def test_every_citation_of_the_method_names_a_section() -> None:
    for path, text in TEXTS.items():
        assert text.count("docs/method.md") == len(SECTIONS.findall(text)), path


def test_every_cited_document_is_in_the_repository() -> None:
    for path, text in TEXTS.items():
        assert not UNNAMED.findall(text), path
        assert not [name for name in DOCUMENT.findall(text) if not (PROJECT / name).is_file()], path


def test_cited_documents_are_tracked() -> None:
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    cited = {name for text in TEXTS.values() for name in DOCUMENT.findall(text)}
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()
    assert cited <= set(tracked)


def test_the_patterns_match_what_they_should() -> None:
    assert list(cited_sections("(docs/method.md, section 5) and docs/method.md,\n    sections 1 and 2")) == [5, 1, 2]
    assert UNNAMED.findall("(METHOD section 3), DESIGN.md, section 2") and not UNNAMED.findall("(docs/method.md, section 3)")
    assert DOCUMENT.findall("see METHOD.md, docs/a/b.md and bench/results/table.md") == ["METHOD.md", "docs/a/b.md"]
