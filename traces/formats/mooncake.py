"""Mooncake: one JSON object a line (timestamp in ms from the start, input_length, output_length), or those as CSV.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces. Published stamps come in steps of about 3 s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import open_text, read_csv

CSV_COLUMNS = ("timestamp_ms", "input_length", "output_length")
JSON_FIELDS = ("timestamp", "input_length", "output_length")
CHUNK_ROWS = 100_000


def read(path: Path) -> Iterator[Rows]:
    """Times from the stamps; sizes are tokens in plus tokens out."""
    if _is_csv(path):
        for chunk in read_csv(path, CSV_COLUMNS):
            tokens = chunk.floats("input_length", 0.0) + chunk.floats("output_length", 0.0)
            yield Rows(chunk.floats("timestamp_ms", 0.0), size=tokens)
        return
    rows: list[tuple[float, float]] = []
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_request(line, f"{path}:{number}"))
                if len(rows) == CHUNK_ROWS:
                    yield _rows(rows)
                    rows = []
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise InputError(f"{path}: damaged or not text: {error}") from None
    if rows:
        yield _rows(rows)


def _is_csv(path: Path) -> bool:
    return ".csv" in path.suffixes


def _request(line: str, place: str) -> tuple[float, float]:
    try:
        data = json.loads(line)
    except ValueError:
        raise InputError(f"{place}: {line.strip()[:60]!r} is not JSON; an object a line is wanted") from None
    values = []
    for field in JSON_FIELDS:
        value = data.get(field) if isinstance(data, dict) else None
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not math.isfinite(number) or number < 0:
            raise InputError(f"{place}: {field} is {value!r}; a number of at least 0 is wanted")
        values.append(float(number))
    return values[0], values[1] + values[2]


def _rows(rows: list[tuple[float, float]]) -> Rows:
    table = np.array(rows)
    return Rows(table[:, 0], size=table[:, 1])


def _matches(path: Path, line: str) -> bool:
    if _is_csv(path):
        return set(CSV_COLUMNS) <= columns_of(line)
    return line.lstrip().startswith("{")


FORMAT = TraceFormat("mooncake", _matches, read, from_start=True, stepped=True)
