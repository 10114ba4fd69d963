"""Tests of Markdown tables."""

import pytest

from ddvi_fast import _markdown


def test_last_alignment_holds_for_the_columns_that_follow():
    assert _markdown.table("abc", ["123"], align="lr") == "| a | b | c |\n| --- | ---: | ---: |\n| 1 | 2 | 3 |"


def test_alignment_may_name_every_column_or_none():
    assert _markdown.table("ab", [], align="cr").endswith("| :---: | ---: |")
    assert _markdown.table("ab", []).endswith("| --- | --- |")


def test_vertical_bars_in_cells_are_escaped():
    assert _markdown.table(["p(x|z)"], [["a|b"]]) == "| p(x\\|z) |\n| --- |\n| a\\|b |"


def test_a_row_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match=r"expected 2 cells in each row, got 1: \[1\]"):
        _markdown.table("ab", [[1]])
