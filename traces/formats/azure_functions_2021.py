"""Azure Functions 2021: one line an invocation, with its end and its duration in seconds.

Source: github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import read_csv

COLUMNS = ("app", "func", "end_timestamp", "duration")


def read(path: Path) -> Iterator[Rows]:
    """An invocation arrives at its end less its duration; sources are app/func, sizes the duration in ms."""
    for chunk in read_csv(path, COLUMNS):
        duration_ms = chunk.floats("duration", 0.0) * 1e3
        # A function's name is unique only within its application.
        label = chunk.texts("app") + "/" + chunk.texts("func")
        yield Rows(chunk.floats("end_timestamp") * 1e3 - duration_ms, source=label, size=duration_ms)


FORMAT = TraceFormat("azure_functions_2021", lambda path, line: set(COLUMNS) <= columns_of(line), read)
