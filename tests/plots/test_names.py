"""Tests of names as data: titles, classes, groups, terms and phases with the characters of formulas, markup and page templates."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
import torch

from ddvi_fast import plots
from ddvi_fast._html import card
from ddvi_fast._markdown import table
from ddvi_fast.cli.tables import print_table
from ddvi_fast.engine.progress import display
from ddvi_fast.report import page

figures = pytest.importorskip("matplotlib.figure")
ODD = ["a $ b", "$x", "_hidden", "<b>&\"'", "{c}", "100 %", "\\frac", "x_1^2", "$\\bf{", "@DATA@", "[/red]", "", " "]
TITLE = " ".join(ODD)


@pytest.fixture
def texts(monkeypatch):
    """All texts of the pictures that are drawn."""
    found = []
    plain = figures.Figure.savefig

    def save(figure, *arguments, **options):
        from matplotlib.text import Text

        plain(figure, *arguments, **options)
        found.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(figures.Figure, "savefig", save)
    return found


def points(count: int = 2 * len(ODD)) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("error")
def test_titles_and_names_of_classes_are_drawn_as_they_stand(tmp_path, texts):
    z, labels = points(), torch.arange(2 * len(ODD)) % len(ODD)
    plots.latents(tmp_path / "latents.png", z, labels, z, title=TITLE, class_names=ODD)
    plots.comparison(tmp_path / "comparison.png", [(name, z, labels) for name in ODD[:3]], TITLE, class_names=ODD)
    plots.grid(tmp_path / "grid.png", ODD[:2], ODD[2:4], {(ODD[0], ODD[2]): (z, labels)}, TITLE, class_names=ODD)
    plots.trajectory(tmp_path / "trajectory.png", z.expand(3, -1, -1), labels, title=TITLE, class_names=ODD)
    assert texts.count(TITLE) == 4 and all(texts.count(name) >= 4 for name in ODD)
    assert "end, $z = y_0$" in texts, "our own formulas are formulas"


@pytest.mark.filterwarnings("error")
def test_names_of_terms_and_phases_are_drawn_as_they_stand(tmp_path, texts):
    records = [{"step": step, "phase": phase, "epoch": 0, **dict.fromkeys(ODD[:4], 1.0)} for step, phase in enumerate(ODD[:3])]
    plots.loss_terms(tmp_path / "terms.png", records, TITLE)
    assert TITLE in texts and all(texts.count(name) >= 2 for name in ODD[:3])


@pytest.mark.filterwarnings("error")
def test_names_of_populations_and_groups_are_drawn_as_they_stand(tmp_path, texts):
    z, labels = points().numpy(), np.arange(2 * len(ODD)) % len(ODD)
    groups = [ODD[number % 4] for number in range(len(ODD))]
    plots.population_maps(tmp_path / "maps.png", [(ODD[1], z)], labels, ODD, groups, TITLE)
    plots.uncertainty(tmp_path / "clouds.png", np.stack([z, z + 0.1]), labels, ODD, groups, TITLE)
    assert texts.count(TITLE) == 2 and all(texts.count(name) >= 2 for name in [*ODD, *groups])


def test_a_page_has_its_title_and_names_as_data(tmp_path):
    names = ["</script><script>alert(1)</script>", "@TITLE@", *ODD]
    path = plots.interactive_map(
        tmp_path / "map.html", points(len(names)).numpy(), np.arange(len(names)), names, names, {"<i>": names}, TITLE + "</title>"
    )
    text = path.read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert data["names"] == names == data["groups"] == data["hover"]["<i>"]
    assert html.unescape(re.search("<title>(.*?)</title>", text, re.S)[1]) == TITLE + "</title>" and "<script>alert" not in text


@pytest.mark.parametrize("name", ODD)
def test_pieces_of_html_escape_what_they_are_given(name):
    pieces = (
        card(name, {name: name}), page.page(name, []), page.table([name], [[name]]), page.legend([name], [0]), page.cards([(name, "")]),
        page.paragraph(name), page.folded(name, name), page.section("a", name, "x"),
    )  # fmt: skip
    for piece in pieces:
        assert html.escape(name) in piece and "<b>&" not in piece


def test_names_on_the_terminal_are_no_markup(capsys):
    for label in ODD:
        print_table([(label, {"elbo": -1.0})], title=f"{label} title")
        assert f"{label} title".strip() in capsys.readouterr().out
    print_table([("[bold]run[/bold]", {"elbo": -1.0})])
    assert "[bold]run[/bold]" in capsys.readouterr().out

    class Stream:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return True

    stream = Stream()
    bar = display("on", stream, 3)
    bar.update(1, "[/x]", {"[/y]": 1.0})
    bar.close()
    assert "[/x]" in stream.text and "[/y] 1" in stream.text


def test_cells_of_a_table_are_one_line():
    assert table(["a\nb"], [["c\r\nd|e"]]).splitlines() == ["| a b |", "| --- |", "| c d\\|e |"]
