"""Tables for people, on the console and in documents alike: Markdown with padded columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first ``left`` columns are aligned left, the others right."""
    widths = [max(3, *(len(row[i]) for row in (heads, *rows))) for i in range(len(heads))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join(line(cells) for cells in (heads, rule, *rows))


def interval(values: Sequence[float], sign: str = "+") -> str:
    """A mean with its interval, from [low, mean, high]."""
    low, mean, high = values
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested dictionaries, each with its keys from the outermost on."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from leaves(item, (*path, key))
        else:
            yield (*path, key), item


def pivot_table(record: Mapping[str, Any]) -> str:
    """Figures of any benchmark: one column per name of a figure, one row per thing it is of, single figures apart."""
    single, words = [], []
    groups: list[tuple[list[str], dict[str, dict[str, str]]]] = []  # columns, and cells by row and column
    for (*row, column), value in leaves({key: value for key, value in record.items() if key != "config"}):
        if not row and isinstance(value, str):
            words.append(f"{column} {value}")
        elif row and value is None:
            continue
        elif not row:
            single.append((column, shown(value)))
        else:
            label = " ".join(row)
            group = next((g for g in groups if label in g[1]), None)
            if group is None and not (groups and column in groups[-1][0]):
                groups.append(([], {}))
            columns, cells = group or groups[-1]
            columns += [column] * (column not in columns)
            cells.setdefault(label, {})[column] = shown(value)
    parts = [table(("figure", "value"), single)] if single else []
    for columns, cells in groups:
        parts.append(
            table(("", *columns), [(row, *(c.get(name, "-") for name in columns)) for row, c in cells.items()])
        )
    return "\n\n".join([*parts, *([f"Measured: {', '.join(words)}."] if words else [])])


def shown(value: Any) -> str:
    """A value as a cell shows it."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if value is None or isinstance(value, bool | str):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
