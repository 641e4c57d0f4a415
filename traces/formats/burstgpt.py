"""BurstGPT: one line per request to a language model, with a time in seconds from the start of the recording.

Source: github.com/HPMLL/BurstGPT.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.formats.base import Rows, TraceFormat, columns_of, stamps_ms
from traces.tables import read_csv

COLUMNS = ("Timestamp", "Model", "Total tokens")


def read(path: Path) -> Iterator[Rows]:
    """Times from Timestamp."""
    for chunk in read_csv(path, COLUMNS):
        yield Rows(stamps_ms(chunk.floats("Timestamp", 0.0), 1e3))


FORMAT = TraceFormat("burstgpt", lambda path, line: set(COLUMNS) <= columns_of(line), read, step_ms=1000.0)
