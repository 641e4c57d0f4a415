"""Azure Functions 2021: one line per invocation, with its end and its duration in seconds.

Source: github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import read_csv

COLUMNS = ("app", "func", "end_timestamp", "duration")


def read(path: Path) -> Iterator[Rows]:
    """An invocation arrives at its end less its duration."""
    for chunk in read_csv(path, COLUMNS):
        yield Rows((chunk.floats("end_timestamp") - chunk.floats("duration", 0.0)) * 1e3)


FORMAT = TraceFormat("azure_functions_2021", lambda path, line: set(COLUMNS) <= columns_of(line), read)
