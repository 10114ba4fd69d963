"""Tests of the generated regions of README.md and docs: up to date, filled from known files, and read correctly."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", PROJECT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_generated_region_is_up_to_date(generate, capsys) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_every_region_is_shown_on_a_page_and_closed(generate) -> None:
    texts = [page.read_text(encoding="utf-8") for page in generate.PAGES]
    shown = [found[1] for text in texts for found in generate.REGION.finditer(text)]
    assert set(shown) == set(generate.REGIONS)
    assert sum(text.count("<!-- begin:") for text in texts) == sum(text.count("<!-- end:") for text in texts) == len(shown)


def test_a_region_is_filled_with_the_space_that_it_had(generate) -> None:
    regions = {"one": lambda: "6 to 7", "two": lambda: "| a |\n| --- |"}
    text = "takes <!-- begin:one -->5<!-- end:one --> times\n<!-- begin:two -->\n<!-- end:two -->\n<!-- begin:two -->\n\nold\n\n<!-- end:two -->\n"
    filled = generate.filled(text, regions)
    line, first, second = filled.split("\n<!-- begin:two -->")
    assert line == "takes <!-- begin:one -->6 to 7<!-- end:one --> times"
    assert first == "\n| a |\n| --- |\n<!-- end:two -->" and second == "\n\n| a |\n| --- |\n\n<!-- end:two -->\n"
    assert generate.filled(filled, regions) == filled
    with pytest.raises(KeyError, match="unknown"):
        generate.filled("<!-- begin:unknown --><!-- end:unknown -->", regions)


def test_check_names_a_page_that_is_not_up_to_date(generate, tmp_path, monkeypatch, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin:digits-cost -->0<!-- end:digits-cost -->\n")
    monkeypatch.setattr(generate, "PAGES", [page])
    monkeypatch.setattr(generate, "PROJECT", tmp_path)
    assert generate.main(["--check"]) == 1 and "page.md" in capsys.readouterr().out and ">0<" in page.read_text()
    assert generate.main([]) == 0 and ">0<" not in page.read_text()
    assert generate.main(["--check"]) == 0


def test_tables_of_a_results_file_are_read_with_whose_numbers_they_are(generate, tmp_path, monkeypatch) -> None:
    lines = ["# Title", "", "|  | method | ELBO | paper |", "| - | - | - | - |", "| ring | a | **-1.50 ± 0.20** | -2 |", "| ring | b | - | -3 |"]
    (tmp_path / "table.md").write_text("\n".join(lines))
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    (table,) = generate.tables("table.md")
    assert table.headings == ("prior", "method", "ELBO", "ELBO, paper")
    assert generate.number(table.cell("ELBO", method="a")) == -1.5 and table.cell("ELBO, paper", prior="ring", method="b") == "-3"
    assert table.where(method=("b", "c")).select("method").rows == (("b",),)
    with pytest.raises(ValueError, match="no number"):
        generate.number("-")


@pytest.mark.parametrize(
    ("counted", "failed", "expected"),
    [
        ("40 of 198 agree with float64", [], "40 run, 40 passed, 158 not run for lack of time"),
        ("34 of 36 agree with float64", ["x", "y"], "36 run, 34 passed, 2 failed, 0 not run for lack of time"),
        ("no operation makes the host wait", [], "passed: no operation makes the host wait"),
    ],
)
def test_the_outcome_of_a_check_counts_what_was_run(generate, counted, failed, expected) -> None:
    summary = f"{counted}, float32 off by at most 1.8e-06 of the largest value"
    assert generate.outcome({"ok": not failed, "summary": summary, "failed": failed}).startswith(expected)


def test_cells_are_those_of_the_results(generate) -> None:
    record = json.loads((PROJECT / "bench" / "results" / "targets-cpu.json").read_text(encoding="utf-8"))
    case = next(case for case in record["cases"] if case["name"] == "training N=128 T=40 forward+backward")
    times = {provider: result["median"] for provider, result in case["results"].items()}
    row = next(line for line in generate.speed().splitlines() if line.startswith("| training step") and "CPU" in line)
    assert f"| {times['eager']:.0f} ms |" in row and f"| {times['eager'] / times['ours']:.2f} |" in row
