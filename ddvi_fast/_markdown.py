"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "c": ":---:", "r": "---:"}


def table(headings: Sequence[object], rows: Iterable[Sequence[object]], align: str = "l") -> str:
    """Format a Markdown table, without a newline after its last row.

    Args:
        headings: Heading of each column.
        rows: Cells of each row, as many as there are headings. A vertical bar inside a cell is escaped, and the end of a line is a space.
        align: Alignment of each column: l, c or r (default l). The last letter also holds for all columns that follow.

    Raises:
        ValueError: A row has more or fewer cells than there are headings.

    Example:
        >>> print(table(["method", "ELBO"], [["vae", -5.25], ["ddvi", -4.5]], align="lr"))
        | method | ELBO |
        | --- | ---: |
        | vae | -5.25 |
        | ddvi | -4.5 |
    """
    align = align.ljust(len(headings), align[-1])
    lines = [_line(headings), _line([_RULES[align[column]] for column in range(len(headings))])]
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"table: expected {len(headings)} cells in each row, got {len(row)}: {list(row)}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(' '.join(str(cell).splitlines()).replace('|', chr(92) + '|') for cell in cells)} |"
