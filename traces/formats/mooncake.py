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
from traces.formats.base import Rows, TraceFormat, columns_of, stamps_ms
from traces.tables import DAMAGED, open_text, read_csv

CSV_COLUMNS = ("timestamp_ms", "input_length", "output_length")


def read(path: Path) -> Iterator[Rows]:
    """Times from the stamps."""
    if _is_csv(path):
        for chunk in read_csv(path, CSV_COLUMNS):
            yield Rows(chunk.floats("timestamp_ms", 0.0))
    else:
        yield read_json_lines(path, 1.0)


def read_json_lines(path: Path, unit_ms: float) -> Rows:
    """Times from the field "timestamp" of each line."""
    with open_text(path) as file:
        try:
            stamps = [_stamp(line, f"{path}:{number}") for number, line in enumerate(file, start=1) if line.strip()]
        except DAMAGED as error:
            raise InputError(f"{path}: damaged or not text: {error}") from None
    return Rows(stamps_ms(np.array(stamps), unit_ms))


def has_fields(line: str, *names: str) -> bool:
    """Whether a line begins an object with these fields; it may be cut off, for lists of hashes can be very long."""
    return line.lstrip().startswith("{") and all(f'"{name}"' in line for name in names)


def _is_csv(path: Path) -> bool:
    return ".csv" in path.suffixes


def _stamp(line: str, place: str) -> float:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{place}: {line.strip()[:60]!r} is not JSON; expected one object per line") from None
    value = data.get("timestamp") if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError(f"{place}: timestamp is {value!r}; expected a number of at least 0")
    return float(value)


def _matches(path: Path, line: str) -> bool:
    return set(CSV_COLUMNS) <= columns_of(line) if _is_csv(path) else has_fields(line, "timestamp", *CSV_COLUMNS[1:])


# Others write the same fields in seconds: a mean gap of 100 is 10 requests/s in ms, and one in 100 s in seconds.
FORMAT = TraceFormat("mooncake", _matches, read, step_ms=3000.0, usual_rps=(0.0, 10.0))
