"""Tables for people, on the console and in documents alike: Markdown with padded columns."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table.

    Args:
        heads: titles of the columns.
        rows: cells.
        left: number of columns that are aligned left; those after them are aligned right.
    """
    widths = [max(3, *(len(row[i]) for row in (heads, *rows))) for i in range(len(heads))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join(line(cells) for cells in (heads, rule, *rows))
