"""Mooncake: one JSON object per line, with a timestamp in ms from the start, or these as CSV.

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


def read(path: Path) -> Iterator[Rows]:
    """Times from the stamps."""
    if _is_csv(path):
        for chunk in read_csv(path, CSV_COLUMNS):
            yield Rows(chunk.floats("timestamp_ms", 0.0))
        return
    with open_text(path) as file:
        try:
            stamps = [_stamp(line, f"{path}:{number}") for number, line in enumerate(file, start=1) if line.strip()]
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise InputError(f"{path}: damaged or not text: {error}") from None
    yield Rows(np.array(stamps))


def _is_csv(path: Path) -> bool:
    return ".csv" in path.suffixes


def _stamp(line: str, place: str) -> float:
    try:
        data = json.loads(line)
    except ValueError:
        raise InputError(f"{place}: {line.strip()[:60]!r} is not JSON; expected one object per line") from None
    value = data.get("timestamp") if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError(f"{place}: timestamp is {value!r}; expected a number of at least 0")
    return float(value)


def _matches(path: Path, line: str) -> bool:
    if _is_csv(path):
        return set(CSV_COLUMNS) <= columns_of(line)
    return line.lstrip().startswith("{")


FORMAT = TraceFormat("mooncake", _matches, read, from_start=True, stepped=True)
