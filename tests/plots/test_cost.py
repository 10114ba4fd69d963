"""Tests of the pictures of a metric against its cost."""

import numpy as np
import pytest

from ddvi_fast import plots
from ddvi_fast.plots import cost as drawing


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written."""
    figures, write = [], drawing.write
    monkeypatch.setattr(drawing, "write", lambda figure, *more: figures.append(figure) or write(figure, *more))
    return figures


def test_each_panel_has_its_lines_in_the_order_of_x_and_a_method_one_colour(drawn, tmp_path):
    first = {"a": ([4, 1, 2], [7.0, 9.0, 8.0]), "b": ([1, 2], [5.0, 4.0])}
    panels = {("MNIST", "rows"): first, ("MNIST", "seconds"): {"b": ([30.0], [4.0])}, ("digits", "rows"): {"a": ([3], [1.0])}}
    path = plots.curves(tmp_path / "c.png", ["MNIST", "digits"], ["rows", "seconds"], panels, "title", ylabel="NLL")
    assert path.stat().st_size > 5000
    one, two, three, empty = drawn[0].axes
    assert [line.get_xdata().tolist() for line in one.lines] == [[1, 2, 4], [1, 2]]
    assert one.lines[0].get_ydata().tolist() == [9, 8, 7] and two.lines[0].get_xdata().tolist() == [30] and not empty.lines
    assert one.lines[0].get_color() == three.lines[0].get_color() != one.lines[1].get_color() == two.lines[0].get_color()
    assert one.get_xlabel() == "rows" and one.get_ylabel() == "NLL" and one.get_xscale() == "log" and one.get_title() == "MNIST"
    shown = {f"{10**power * factor:g}" for power in range(3) for factor in (1, 2, 5)}
    assert {tick.get_text() for axes in (one, two) for tick in axes.get_xticklabels()} - {""} <= shown | {"0.5", "500m", "200m", "100m", "1k"}
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (([1, 2], [1.0]), "a: expected as many numbers of x as of y"),
        (([], []), "a: expected as many"),
        (([0, 1], [1.0, 2.0]), "a: expected positive"),
    ],
)
def test_bad_lines_are_told(line, words, tmp_path, one_line):
    one_line(lambda: plots.curves(tmp_path / "c.png", ["r"], ["c"], {("r", "c"): {"a": line}}), words)


def test_nothing_to_draw_and_an_existing_file(tmp_path, one_line):
    one_line(lambda: plots.curves(tmp_path / "c.png", ["r"], ["c"], {}), "panels: expected at least one line")
    lines = {("r", "c"): {"a": (np.array([1.0]), np.array([2.0]))}}
    plots.curves(tmp_path / "c.png", ["r"], ["c"], lines)
    one_line(lambda: plots.curves(tmp_path / "c.png", ["r"], ["c"], lines), "path: expected a new file")
